"""What a run writes down: JSON lines always, and what Accelerate's trackers hold of it."""

import copy
import json

import pytest

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.train.cpo import CPO, CPOSettings
from cacovid.train.replay import RatioSettings
from cacovid.train.rewards import Rewards
from cacovid.train.rollouts import RolloutSettings
from cacovid.train.settings import TrainerSettings
from cacovid.train.trainer import Trainer


class SeesToken:
    """Rewards rollouts that keep a token of half a frame."""

    def __init__(self, encoder):
        self.prepare = encoder

    def __call__(self, prepared, rollouts):
        hit = rollouts[:, 252:270].any(dim=1).float()
        return Rewards(hit, hit)


@pytest.fixture
def trainer(encoder, samples, tmp_path):
    rollouts = RolloutSettings(token_rollouts=4, frame_rollouts=2)
    objective = CPO(SeesToken(encoder), CPOSettings(rollouts, RatioSettings(base=0.1), updates=2))
    settings = TrainerSettings(steps=4, learning_rate=1e-3, checkpoint_every=2, log_every=1)

    def make(policy, *trackers):
        return Trainer(policy, objective, samples, settings, tmp_path, trackers=trackers)

    return make


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def curves(folder):
    """`{name: [(step, value), …]}` of all event files below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (where,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(where)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_holds_what_the_json_lines_hold(trainer, policy, tmp_path):
    pytest.importorskip("tensorboard")
    trainer(policy, "tensorboard").train()
    entries, read = lines(tmp_path), curves(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert set(read) == set(entries[0]) - {"step"}
    for name in ("reward", "ratio", "zero_variance", "token_spread", "token_entropy", "loss"):
        # Event files hold float32.
        expected = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in entries]
        assert read[name] == expected, name


def test_a_resumed_run_has_every_step_once(trainer, policy, tmp_path):
    pytest.importorskip("tensorboard")
    other = copy.deepcopy(policy)
    trainer(other, "tensorboard").train(last=3)  # stopped after the checkpoint of step 2
    again = trainer(policy, "tensorboard")
    again.train(again.resume())
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2, 3, 4]
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 2
    for name, values in curves(tmp_path).items():
        assert [step for step, _ in values] == [1, 2, 3, 4], name


def test_trackers_that_would_be_left_out_are_refused(trainer, policy, monkeypatch):
    from accelerate import tracking

    with pytest.raises(InvalidInputError, match=r"holds 'tensorbord'; expected .*tensorboard"):
        trainer(policy, "tensorbord")
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(MissingDependencyError, match="not installed: pip install tensorboard"):
        trainer(policy, "tensorboard")
