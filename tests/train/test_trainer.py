"""The loop: learns, resumes bit for bit, shares work between processes, stops where it must."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cacovid.errors import InvalidInputError, VideoReadError
from cacovid.train.cpo import CPO, CPOSettings
from cacovid.train.data import Samples
from cacovid.train.provenance import digest
from cacovid.train.replay import RatioSettings
from cacovid.train.rewards import Rewards
from cacovid.train.rollouts import RolloutSettings
from cacovid.train.settings import TrainerSettings
from cacovid.train.trainer import Trainer, TrainingError

SETTINGS = CPOSettings(
    rollouts=RolloutSettings(token_rollouts=6, frame_rollouts=3),
    ratio=RatioSettings(base=0.1),
    updates=2,
)


class SeesToken:
    """Rewards rollouts that keep a token of half a frame; needs no answer of a model."""

    def __init__(self, encoder):
        self.prepare = encoder

    def __call__(self, prepared, rollouts):
        hit = rollouts[:, 252:270].any(dim=1).float()
        return Rewards(hit, hit)


@pytest.fixture
def objective(encoder):
    return CPO(SeesToken(encoder), SETTINGS)


def trainer(policy, objective, samples, folder, **settings):
    values = {
        "steps": 4, "learning_rate": 1e-3, "checkpoint_every": 2, "log_every": 1, "seed": 3,
    } | settings  # fmt: skip
    return Trainer(policy, objective, samples, TrainerSettings(**values), folder)


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_writes_log_checkpoints_and_policy(policy, objective, samples, tmp_path):
    import cacovid

    before = weights(policy)
    run = trainer(policy, objective, samples, tmp_path)
    run.train()
    assert not same(before, weights(policy))
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    for name in (
        "reward", "ratio", "zero_variance", "token_spread", "token_entropy", "frame_spread",
        "loss", "gradient_norm", "learning_rate", "unreadable",
    ):  # fmt: skip
        assert name in entries[0], name
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000002", "step-000004",
    ]  # fmt: skip
    assert same(weights(cacovid.load_policy(tmp_path / "policy")), weights(policy))


def test_rewards_of_the_right_tokens_raise_their_scores(policy, encoder, samples, tmp_path):
    settings = dataclasses.replace(SETTINGS, updates=4, ratio=RatioSettings(base=0.05))
    prompts = [encoder(sample).prompt for sample in samples[:4]]

    def margin():
        with torch.no_grad():
            scores = [policy(prompt).token for prompt in prompts]
        return sum(float(s[252:270].mean() - s.mean()) for s in scores)

    before = margin()
    objective = CPO(SeesToken(encoder), settings)
    trainer(policy, objective, samples, tmp_path, steps=30, learning_rate=3e-3).train()
    assert margin() > before + 0.2


@pytest.mark.parametrize("stop_at", [2, 3])
def test_a_resumed_run_ends_with_the_same_bits(policy, objective, samples, tmp_path, stop_at):
    import copy

    other = copy.deepcopy(policy)
    trainer(policy, objective, samples, tmp_path / "through").train()
    trainer(other, objective, samples, tmp_path / "stopped").train(last=stop_at)
    fresh = copy.deepcopy(other)
    with torch.no_grad():
        for value in fresh.parameters():
            value.zero_()
    again = trainer(fresh, objective, samples, tmp_path / "stopped")
    assert again.resume() == 2
    again.train(first=2)
    assert same(weights(policy), weights(fresh))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("through", "stopped")]
    assert logs[0] == logs[1]


def test_a_run_of_other_settings_is_not_resumed(policy, encoder, objective, samples, tmp_path):
    from cacovid import CrossAttentionPolicy

    trainer(policy, objective, samples, tmp_path).train(last=2)
    kept = weights(policy)
    with torch.no_grad():
        policy.query.weight.zero_()
    changed = weights(policy)

    def refuse(message, policy=policy, objective=objective, samples=samples, **settings):
        with pytest.raises(InvalidInputError, match=re.escape(f"{message}. Use the config")):
            trainer(policy, objective, samples, tmp_path, **settings).resume()

    refuse("run: training.steps was 4 and is now 9; stages was [4] and is now [9]", steps=9)
    refuse("run: training.learning_rate was 0.001 and is now 0.5", learning_rate=0.5)
    refuse("run: training.samples_per_step was 1 and is now 3", samples_per_step=3)
    settings = dataclasses.replace(SETTINGS, clip=(0.1, 0.1), keep_logit=-8.0)
    refuse(
        "run: cpo.clip was [0.2, 0.28] and is now [0.1, 0.1]; cpo.keep_logit was 0.0 and is now "
        "-8.0", objective=CPO(objective.reward, settings),
    )  # fmt: skip
    few = Samples(samples.kept[:11])
    was, now = digest(samples), digest(few)
    refuse(f"run: samples was ['{was}'] and is now ['{now}']", samples=few)
    wider = CrossAttentionPolicy(dataclasses.replace(policy.config, slots=5))
    refuse("run: policy.slots was 4 and is now 5", policy=wider)
    assert same(weights(policy), changed)  # refused before anything was loaded
    free = {"log_every": 3, "checkpoint_every": 1, "evaluate_every": 2, "max_unreadable": 0.5}
    assert trainer(policy, objective, samples, tmp_path, **free).resume() == 2
    assert same(weights(policy), kept)


def test_what_the_caller_says_of_a_run_is_compared(policy, objective, samples, tmp_path):
    settings = TrainerSettings(steps=2, learning_rate=1e-3, checkpoint_every=1)

    def run(**provenance):
        return Trainer(policy, objective, samples, settings, tmp_path, provenance=provenance)

    run(model="tiny").train(last=1)
    with pytest.raises(InvalidInputError, match="model was 'tiny' and is now 'large'"):
        run(model="large").resume()
    assert run(model="tiny").resume() == 1
    # A checkpoint of an earlier release, which kept less.
    path = tmp_path / "checkpoints" / "step-000001" / "trainer.pt"
    state = torch.load(path)
    del state["provenance"]
    torch.save({**state, "steps": 2, "seed": 0, "stages": [2]}, path)
    assert run(model="large").resume() == 1
    torch.save({**state, "steps": 2, "seed": 5}, path)
    with pytest.raises(InvalidInputError, match=r"training\.seed was 5 and is now 0"):
        run().resume()


def test_a_damaged_checkpoint_is_told(policy, objective, samples, tmp_path):
    trainer(policy, objective, samples, tmp_path).train(last=2)
    path = tmp_path / "checkpoints" / "step-000002" / "trainer.pt"
    whole = path.read_bytes()
    torch.save([1, 2], tmp_path / "other.pt")
    other = (tmp_path / "other.pt").read_bytes()
    for garbage in (b"garbage" * 100, whole[:-500], b"", bytes(range(256)) * 9, other):
        path.write_bytes(garbage)
        with pytest.raises(InvalidInputError, match=r"02/trainer\.pt cannot .* delete .*000002"):
            trainer(policy, objective, samples, tmp_path).resume()


def test_a_finished_run_without_its_policy_writes_it(policy, objective, samples, tmp_path):
    import shutil

    import cacovid

    trainer(policy, objective, samples, tmp_path, steps=2).train()
    shutil.rmtree(tmp_path / "policy")
    again = trainer(policy, objective, samples, tmp_path, steps=2)
    again.train(again.resume())
    assert same(weights(cacovid.load_policy(tmp_path / "policy")), weights(policy))


def test_the_policy_is_there_before_the_last_checkpoint(
    policy, objective, samples, tmp_path, monkeypatch
):
    from cacovid.train import trainer as module

    def killed(folder, step, *arguments):
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(policy, objective, samples, tmp_path, steps=2).train()
    assert (tmp_path / "policy" / "config.json").exists()


def test_nothing_to_resume(policy, objective, samples, tmp_path):
    assert trainer(policy, objective, samples, tmp_path).resume() == 0


def test_a_loss_that_is_no_number_names_the_sample(policy, encoder, samples, tmp_path):
    class Broken(SeesToken):
        def __call__(self, prepared, rollouts):
            rewards = super().__call__(prepared, rollouts)
            return Rewards(rewards.value * float("nan"), rewards.correct)

    run = trainer(policy, CPO(Broken(encoder), SETTINGS), samples, tmp_path)
    with pytest.raises(TrainingError, match=r"the loss of sample train/5/\d/\d is nan"):
        run.train()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("of_all", [False, True])
def test_scores_that_are_no_numbers_name_the_sample(policy, encoder, samples, tmp_path, of_all):
    broken = samples[samples.order(3, 0)[1]]

    class Overflows(SeesToken):
        def __init__(self):
            self.prepare = self._prepare

        def _prepare(self, sample):
            prepared = encoder(sample)
            if sample.id != broken.id or of_all:
                return prepared
            embeds = prepared.prompt.embeds.clone()
            embeds[prepared.prompt.video_index[5]] = float("inf")
            prompt = dataclasses.replace(prepared.prompt, embeds=embeds)
            return dataclasses.replace(prepared, prompt=prompt)

    if of_all:
        with torch.no_grad():
            policy.query.weight.fill_(float("nan"))
    warnings = []
    run = trainer(policy, CPO(Overflows(), SETTINGS), samples, tmp_path, samples_per_step=2)
    run.on_warning = warnings.append
    names = [sample.id for _, sample in run.group(0)] if of_all else [broken.id]
    with pytest.raises(TrainingError, match=f"the scores of sample {', '.join(names)} are no fin"):
        run.train()
    assert not warnings and not (tmp_path / "checkpoints").exists()


class Unreadable(SeesToken):
    """Cannot read the videos of the samples in `bad`."""

    def __init__(self, encoder, bad):
        super().__init__(self._prepare)
        self.encoder, self.bad = encoder, bad

    def _prepare(self, sample):
        if sample.id in self.bad:
            raise VideoReadError(f"{sample.id}: truncated")
        return self.encoder(sample)


def test_unreadable_videos_are_skipped_listed_and_stop_the_run(policy, encoder, samples, tmp_path):
    bad = {samples[1].id}

    warnings = []
    objective = CPO(Unreadable(encoder, bad), SETTINGS)
    run = Trainer(
        policy, objective, samples,
        TrainerSettings(steps=len(samples), learning_rate=1e-3, max_unreadable=0.2),
        tmp_path, on_warning=warnings.append,
    )  # fmt: skip
    run.train()
    assert [name for name, _ in run.unreadable] == [samples[1].id]
    assert any("truncated" in text for text in warnings)
    listed = json.loads((tmp_path / "unreadable.json").read_text())
    assert listed == {"unreadable": {samples[1].id: f"{samples[1].id}: truncated"}}
    bad.update(sample.id for sample in samples)
    match = r"(?s)samples have unreadable videos.*truncated"
    with pytest.raises(TrainingError, match=match) as error:
        trainer(policy, objective, samples, tmp_path / "b", steps=40).train()
    assert samples[2].id in str(error.value) and "b/unreadable.json" in str(error.value)
    listed = json.loads((tmp_path / "b" / "unreadable.json").read_text())["unreadable"]
    assert set(listed) == {sample.id for sample in samples}


def test_a_run_of_unreadable_videos_ends_without_a_policy(policy, encoder, samples, tmp_path):
    bad = {samples[0].id, samples[1].id}

    def run(name, count, **settings):
        objective, few = CPO(Unreadable(encoder, bad), SETTINGS), Samples(tuple(samples[:count]))
        values = {"learning_rate": 1e-3, "checkpoint_every": 9} | settings
        return Trainer(
            policy, objective, few, TrainerSettings(**values), tmp_path / name,
            on_warning=warnings.append,
        )  # fmt: skip

    warnings = []
    with pytest.raises(TrainingError, match="2 of 2 samples have unreadable videos, more than"):
        run("none", 2, steps=6).train()
    with pytest.raises(TrainingError, match=r"2 of 2 samples .*, so that nothing was learned"):
        run("any", 2, steps=6, max_unreadable=1.0).train()
    with pytest.raises(TrainingError, match="2 of 3 samples"):
        run("most", 3, steps=6).train()
    for name in ("none", "any", "most"):
        assert not (tmp_path / name / "policy").exists()
    warnings.clear()
    half = run("half", 4, steps=8, max_unreadable=0.5)
    half.train()
    assert {name for name, _ in half.unreadable} == bad and half.log[-1]["unreadable"] == 2
    told = sorted(text for text in warnings if text.startswith("skipped"))
    assert [text.split(": ")[0] for text in told] == [f"skipped {name}" for name in sorted(bad)]
    state = torch.load(tmp_path / "half" / "checkpoints" / "step-000008" / "trainer.pt")
    twice = [entry for entry in state["unreadable"] for _ in range(3)]  # as earlier releases did
    torch.save(
        {**state, "unreadable": twice},
        tmp_path / "half" / "checkpoints" / "step-000008" / "trainer.pt",
    )
    again = run("half", 4, steps=8, max_unreadable=0.5)
    assert again.resume() == 8 and len(again.unreadable) == 2


@pytest.mark.parametrize("kind", ["cross", "words", "self", "surprise"])
def test_training_in_bfloat16(kind, policy, model, encoder, samples, tmp_path):
    from cacovid import SelfAttentionPolicy, SurpriseConfig, SurprisePolicy
    from cacovid.methods import PolicyMethod
    from cacovid.train.evaluation import evaluate_greedy

    torch.manual_seed(0)
    if kind == "words":
        policy = type(policy)(dataclasses.replace(policy.config, slots=0))
    if kind == "self":
        policy = SelfAttentionPolicy.from_language_model(model).train()
    if kind == "surprise":
        policy = SurprisePolicy(SurpriseConfig(hidden_size=192, width=16, inner_width=8))
    seen = []

    class Watched(CPO):
        def update(self, scores, progress):
            seen.append(scores.token.dtype)
            return super().update(scores, progress)

    calls = []
    policy.register_forward_pre_hook(
        lambda *_: calls.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
    )
    frames = 0 if kind == "surprise" else 3
    rollouts = RolloutSettings(token_rollouts=6, frame_rollouts=frames)
    reward = SeesToken(encoder)
    run = Trainer(
        policy, Watched(reward, dataclasses.replace(SETTINGS, rollouts=rollouts)), samples,
        TrainerSettings(
            steps=1, learning_rate=1e-3, log_every=1, evaluate_every=1, mixed_precision="bf16"
        ),
        tmp_path,
        evaluate=lambda: evaluate_greedy(PolicyMethod(policy), reward, samples[:2], 0.1).accuracy,
    )  # fmt: skip
    before = weights(policy)
    run.train()
    assert seen == [torch.float32] * 2 and not same(before, weights(policy))
    # What is evaluated is what is stored, which nobody runs under autocast.
    assert set(calls) == {(True, True), (False, False)}
    assert all(p.dtype == torch.float32 for p in policy.parameters()) and "greedy" in run.log[0]


def test_a_collapse_is_told(policy, objective, samples, tmp_path):
    with torch.no_grad():
        policy.token_head.score.weight.zero_()
    warnings = []
    run = trainer(policy, objective, samples, tmp_path)
    run.on_warning = warnings.append
    run.train(last=1)
    assert len(warnings) == 1 and "all alike" in warnings[0]


_SCRIPT = """
import json, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from cacovid import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.models.processing import VideoProcessor
from cacovid.models.video_settings import VideoSettings
from cacovid.synthetic.tiny.model import build_model
from cacovid.synthetic.tiny.tokenizer import build_tokenizer
from cacovid.train.cpo import CPO, CPOSettings
from cacovid.train.data import Samples
from cacovid.train.data import embedded_samples, read_sample_frames
from cacovid.train.encoding import SampleEncoder
from cacovid.train.replay import RatioSettings
from cacovid.train.rewards import LocalReward, freeze
from cacovid.train.rollouts import RolloutSettings
from cacovid.train.settings import TrainerSettings
from cacovid.train.trainer import Trainer

tokenizer = build_tokenizer()
model = freeze(build_model(tokenizer))
processor = VideoProcessor(tokenizer, VideoSettings(144, 144, num_image_tokens=144))
encoder = SampleEncoder(model, processor, read_sample_frames)
reward = LocalReward(encoder, kind="log_probability")
rollouts = RolloutSettings(token_rollouts=6, frame_rollouts=3)
objective = CPO(reward, CPOSettings(rollouts, RatioSettings(base=0.1), updates=2))
torch.manual_seed(0)
policy = CrossAttentionPolicy(
    CrossAttentionConfig(hidden_size=192, slots=4, slot_width=16, head_size=8)
)
settings = TrainerSettings(
    steps=3, samples_per_step={each}, learning_rate=1e-3, checkpoint_every=1, log_every=1
)
run = Trainer(policy, objective, embedded_samples("train", 5, 2, 4), settings, Path({folder!r}))
run.train(run.resume())
"""


def _script(folder: Path, each: int) -> list[str]:
    text = _SCRIPT.format(tests=str(Path(__file__).parent), each=each, folder=str(folder))
    path = folder.with_suffix(".py")
    path.write_text(text)
    return [str(path)]


def _environment():
    root = str(Path(__file__).resolve().parents[2])
    # `accelerate launch --cpu` starts one process, or asks for MPI; this starts two, with gloo.
    return os.environ | {
        "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip


@pytest.mark.timeout(300)
def test_two_processes_learn_what_one_does(tmp_path):
    import cacovid

    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0",
    ]  # fmt: skip
    one = [sys.executable, *_script(tmp_path / "one", 2)]
    two = [*launch, *_script(tmp_path / "two", 1)]
    for command in (one, two):
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    norms = [[entry["gradient_norm"] for entry in log] for log in logs]
    # The same gradients; later steps differ by what Adam makes of the last bits.
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-6) and norms[0][0] > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    a, b = (cacovid.load_policy(tmp_path / name / "policy") for name in ("one", "two"))
    start = cacovid.CrossAttentionPolicy(a.config)
    assert any(not torch.equal(v, start.state_dict()[n]) for n, v in a.state_dict().items())
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-2, atol=1e-3)


@pytest.mark.timeout(300)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    import cacovid

    through = subprocess.run(
        [sys.executable, *_script(tmp_path / "through", 1)], env=_environment(), check=True
    )
    assert through.returncode == 0
    command = [sys.executable, *_script(tmp_path / "killed", 1)]
    process = subprocess.Popen(command, env=_environment())
    first = tmp_path / "killed" / "checkpoints" / "step-000001"
    while not first.exists() and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "policy").exists()
    subprocess.run(command, env=_environment(), check=True)
    a, b = (cacovid.load_policy(tmp_path / name / "policy") for name in ("through", "killed"))
    assert same(weights(a), weights(b))


def test_imitation_comes_closer_to_the_attention(policy, model, encoder, samples, tmp_path):
    from cacovid.train.encoding import SampleEncoder
    from cacovid.train.imitation import Imitation, ImitationSettings

    settings = ImitationSettings(layer=0, queries="question")
    own = SampleEncoder(
        model, encoder.processor, encoder.read_frames, needs=frozenset({settings.extra})
    )
    few = Samples(samples.kept[:2])
    trainer(policy, Imitation(own, settings), few, tmp_path, steps=30, learning_rate=3e-3).train()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    received = own(few[0]).prompt.extras[settings.extra]
    share = (received / received.sum()).double()
    least = -float((share * share.log()).sum())
    first = sum(entry["cross_entropy"] for entry in log[:4])
    last = sum(entry["cross_entropy"] for entry in log[-4:])
    assert last < first - 0.01 and least > 0
    with pytest.raises(InvalidInputError, match="imitation needs 'received_attention/0/question'"):
        Imitation(encoder, settings)
