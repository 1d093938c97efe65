"""The configurations that the project offers can be read."""

import re
from pathlib import Path

import pytest

from cacovid.errors import InvalidInputError
from cacovid.train.config import PolicySection, TrainConfig, build, read_config

FOLDER = Path(__file__).resolve().parents[2] / "bench" / "configs"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("tiny-*.yaml")), ids=lambda path: path.stem)
def test_configurations_can_be_read(path):
    config = read_config(path)
    assert config.model == "tiny" and config.output.startswith("runs/")


@pytest.mark.parametrize(
    "other", [{"type": "cross_attention"}, {"from_language_model": False}, {"start": "folder"}]
)
def test_roles_are_exchanged_of_a_layer_only(other):
    wanted = {"type": "self_attention", "exchange_roles": True}
    assert PolicySection(**wanted).exchange_roles
    with pytest.raises(InvalidInputError, match="exchange_roles is for a self_attention policy"):
        PolicySection(**{**wanted, **other})


def test_policies_are_checked_where_the_configuration_is_read():
    for section, message in (
        ({"type": "suprise"}, r"policy\.type is 'suprise' \(did you mean 'surprise'\?\)"),
        ({"settings": {"slot": 3}}, r"settings: 'slot' is not known \(did you mean 'slots'\?\)"),
        ({"settings": {"slots": "x"}}, r"policy\.settings: slots is 'x'; expected int"),
        ({"settings": {"slots": -1}}, "slots is -1"),
        ({"settings": {"hidden_size": 64}}, "'hidden_size' is that of the model; leave it out"),
        ({"type": "self_attention", "settings": {"head_size": 8}}, "head_size.*layer.* false"),
        ({"type": "self_attention", "settings": {"policy_shares": 1}}, "mean 'policy_share'"),
        (
            {"type": "self_attention", "from_language_model": False, "settings": {}},
            "'hidden_size' is missing",
        ),
        ({"type": "surprise"}, r"8 frame rollouts.* objective: score, or cpo\.rollouts\.frame"),
    ):
        with pytest.raises(InvalidInputError, match=message) as error:
            build(TrainConfig, {"output": "out", "policy": section}, "file")
        assert "did you mean 'hidden_size'" not in str(error.value)
    surprise = {"output": "out", "policy": {"type": "surprise"}}
    for objective in ({"objective": "score"}, {"cpo": {"rollouts": {"frame_rollouts": 0}}}):
        assert build(TrainConfig, {**surprise, **objective}, "file").policy.type == "surprise"
    rate = PolicySection(settings={"rms_norm_eps": "1e-5"})  # YAML reads 1e-5 as text
    assert rate.settings == {"rms_norm_eps": 1e-5}


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("cpo.updates", 0, "cpo.updates is 0; expected at least 1"),
        ("cpo.clip", [0.2], "clip is [0.2]; expected a list of 2 entries"),
        ("cpo.clip", [0.2, 0.3, 0.4], "expected a list of 2 entries"),
        ("cpo.clip", [0.2, "high"], "clip is 'high'; expected float"),
        ("cpo.clip", [1.5, 0.2], "cpo.clip is (1.5, 0.2); expected two numbers"),
        ("cpo.clip", [0.2, -0.1], "cpo.clip is (0.2, -0.1); expected two numbers"),
        ("cpo.kl_weight", -1, "cpo.kl_weight is -1.0; expected at least 0"),
        ("cpo.spread_weight", float("nan"), "cpo.spread_weight is nan; expected at least 0"),
        ("cpo.keep_logit", float("-inf"), "cpo.keep_logit is -inf; expected a number"),
        ("cpo.ratio.base", 0, "ratio.base is 0.0; expected a number in (0, 1]"),
        ("cpo.ratio.low", 0, "ratio.low is 0.0; expected a number in (0, 1]"),
        ("cpo.ratio.high", 3, "ratio.high is 3.0; expected a number in (0, 1]"),
        ("cpo.rollouts.subspace_factor", -1, "subspace_factor is -1.0; expected more than 0"),
        ("cpo.rollouts.max_subspace_prob", 2, "max_subspace_prob is 2.0; expected a number in"),
        ("training.max_grad_norm", 0, "max_grad_norm is 0.0; expected more than 0"),
        ("training.learning_rate", "nan", "learning_rate is nan; expected more than 0"),
        ("training.warmup", -1, "warmup is -1.0; expected a number in [0, 1]"),
        ("training.final_rate", 2, "final_rate is 2.0; expected a number in [0, 1]"),
        ("training.weight_decay", -1, "weight_decay is -1.0; expected at least 0"),
        ("training.pretrained_rate_factor", -1, "pretrained_rate_factor is -1.0; expected at"),
        ("training.max_unreadable", 5, "max_unreadable is 5.0; expected a number in [0, 1]"),
        ("training.keep_checkpoints", 0, "keep_checkpoints is 0; expected at least 1"),
        ("training.evaluate_every", -1, "evaluate_every is -1; expected at least 0"),
        ("evaluation.retention", 2, "evaluation.retention is 2.0; expected a number in (0, 1]"),
        ("evaluation.questions", -5, "evaluation.questions is -5; expected at least 0"),
        ("reward.max_new_tokens", 0, "reward.max_new_tokens is 0; expected at least 1"),
        ("reward.batch_tokens", 0, "reward.batch_tokens is 0; expected at least 1"),
        ("reward.cached_videos", -1, "reward.cached_videos is -1; expected at least 0"),
        ("data.scenes", 0, "data.scenes is 0; expected at least 1"),
        ("data.per_scene", 0, "data.per_scene is 0; expected at least 1"),
        ("data.frames_per_image", 0, "data.frames_per_image is 0; expected at least 1"),
        ("data.first", -1, "data.first is -1; expected at least 0"),
        ("data.max_frames", 0, "data.max_frames is 0; expected at least 1"),
        ("data.fps", 0, "data.fps is 0.0; expected more than 0"),
        ("data.max_skipped", 2, "data.max_skipped is 2.0; expected a number in [0, 1]"),
        ("evaluation.max_skipped", -1, "evaluation.max_skipped is -1.0; expected a number in"),
        ("stages", [{"steps": 0}], "stages: steps is 0; expected at least 1"),
        ("imitation.updates", 0, "imitation.updates is 0; expected at least 1"),
        ("imitation.layer", -1, "imitation.layer is -1; expected at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(entry, value, message):
    values = value
    for name in reversed(entry.split(".")):
        values = {name: values}
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        build(TrainConfig, {"output": "out", **values}, "file")


def test_settings_at_their_limits_are_taken():
    values = {
        "output": "out", "cpo": {"clip": [1, 0.1], "ratio": {"high": 1}},
        "training": {"warmup": 0, "final_rate": 1, "max_unreadable": 1.0},
        "evaluation": {"questions": 0, "retention": 1}, "reward": {"cached_videos": 0},
        "data": {"max_frames": None, "fps": None},
    }  # fmt: skip
    config = build(TrainConfig, values, "file")
    assert config.cpo.clip == (1.0, 0.1) and config.evaluation.retention == 1.0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.yaml", "output: o\ntraining:\n  steps: 1\n  steps: 9\n", "'steps' twice.*line 4"),
        ("a.yaml", "output: o\ndata: {}\ndata: {scenes: 3}\n", "'data' twice in one section"),
        ("a.json", '{"output": "o", "training": {"steps": 1, "steps": 9}}', "'steps' twice"),
    ],
)  # fmt: skip
def test_an_entry_that_is_there_twice_is_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=told):
        read_config(tmp_path / name)


def test_entries_of_merged_yaml_sections_may_be_overruled(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "output: o\ndata: &all {scenes: 3, per_scene: 2}\nstages: []\n"
        "training: {steps: 2, seed: 1}\nevaluation: {questions: 0}\n"
    )
    assert read_config(path).data.scenes == 3
    path.write_text(
        "output: o\nstages:\n  - {steps: 1, data: &all {scenes: 3, per_scene: 2}}\n"
        "  - {steps: 1, data: {<<: *all, per_scene: 1}}\n"
    )
    assert [(s.data.scenes, s.data.per_scene) for s in read_config(path).stages] == [(3, 2), (3, 1)]


def test_a_video_is_no_configuration(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\x00\x00\x00\x20ftypisom\xff\xfe")
    with pytest.raises(InvalidInputError, match=r"clip\.mp4 is no text; expected a configuration"):
        read_config(path)
