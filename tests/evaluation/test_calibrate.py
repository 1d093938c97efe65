"""The chosen share of tokens on made-up marks, and where it is written."""

import json

import numpy as np
import pytest
import yaml

from cacovid.errors import InvalidInputError
from cacovid.evaluation.calibrate import Wish, WishNotMetError, calibrate
from cacovid.evaluation.calibration_target import check_target, write_retention
from cacovid.evaluation.compare import UNCOMPRESSED, Comparison, Condition
from cacovid.train.config import read_config

QUESTIONS = 400


def comparison(rights, seconds=()):
    """Of 400 questions on a video each, so many of the first are answered rightly."""

    def row(method, retention, right, time):
        marks = (np.arange(QUESTIONS) < right).astype(float).tolist()
        timed = [] if time is None else [{"read": time / 2, "prefill": time / 2, "decode": 9.0}]
        return Condition(method, retention, marks=marks, seconds=timed)

    times = dict(seconds)
    rows = [row(UNCOMPRESSED, 1.0, 400, times.get(1.0))]
    rows += [row("m", r, right, times.get(r)) for r, right in rights.items()]
    return Comparison(rows, [""] * QUESTIONS, [str(n) for n in range(QUESTIONS)])


def test_the_smallest_share_that_surely_keeps_the_accuracy():
    # 400 of 400 from all tokens. 396 right is exactly 99%: in about half of the draws it is less.
    found = comparison({0.05: 200, 0.1: 384, 0.2: 396, 0.3: 400})
    assert calibrate(found, "m", Wish(keep=0.99)).retention == 0.3
    # 384 right is 96%; the standard error of that is 1%, so that 94% is two of them away.
    assert calibrate(found, "m", Wish(keep=0.94)).retention == 0.1
    certain = [c.certainty for c in calibrate(found, "m", Wish(keep=0.99)).candidates]
    assert certain[0] == 0.0 and 0.3 < certain[2] < 0.8 and certain[3] == 1.0


def test_a_lucky_share_below_one_that_fails_is_not_taken():
    found = calibrate(comparison({0.05: 400, 0.1: 300, 0.2: 400}), "m", Wish(keep=0.9))
    assert found.retention == 0.2
    assert [c.meets for c in found.candidates] == [True, False, True]


@pytest.mark.parametrize("videos", [1, 9, 10])
def test_few_videos_are_no_certainty(videos):
    found = comparison({0.05: 400, 0.1: 400}, {1.0: 0.4, 0.05: 0.1, 0.1: 0.2})
    found.videos = [str(n % videos) for n in range(QUESTIONS)]
    assert calibrate(found, "m", Wish(first_token=0.25)).retention == 0.1
    if videos == 10:
        assert calibrate(found, "m", Wish(keep=0.9)).retention == 0.05
        return
    told = "are on 1 video, too few" if videos == 1 else "are on 9 videos, too few"
    with pytest.raises(WishNotMetError, match=f"{told}.* expected at least 10") as missed:
        calibrate(found, "m", Wish(keep=0.9, first_token=1.0))
    assert [(c.certainty, c.meets) for c in missed.value.candidates] == [(None, False)] * 2


def test_the_largest_share_that_is_fast_enough():
    times = {0.05: 0.1, 0.1: 0.2, 0.2: 0.4}
    found = comparison({0.05: 200, 0.1: 380, 0.2: 400}, times)
    assert calibrate(found, "m", Wish(first_token=0.25)).retention == 0.1
    assert calibrate(found, "m", Wish(keep=0.9, first_token=0.3)).retention == 0.1
    with pytest.raises(InvalidInputError, match=r"no share .* fast enough.* 0.1 s at 0.05"):
        calibrate(found, "m", Wish(first_token=0.05))
    with pytest.raises(InvalidInputError, match=r"0.2 is the smallest .* takes 0.4 s"):
        calibrate(found, "m", Wish(keep=1.0, first_token=0.3))


def test_what_cannot_be_met_is_told():
    found = comparison({0.1: 200})
    with pytest.raises(WishNotMetError, match=r"0.1 keeps 0.5, certainty 0.00 of 0.9") as missed:
        calibrate(found, "m", Wish(keep=0.9))
    (candidate,) = missed.value.candidates
    assert missed.value.accuracy == 1.0 and candidate.accuracy == 0.5 and not candidate.meets
    with pytest.raises(InvalidInputError, match="no question was timed"):
        calibrate(found, "m", Wish(first_token=1.0))
    with pytest.raises(InvalidInputError, match="no rows of method 'other'"):
        calibrate(found, "other", Wish(keep=0.9))
    found.conditions[0].marks = [0.0] * QUESTIONS
    with pytest.raises(WishNotMetError, match="no accuracy to keep") as missed:
        calibrate(found, "m", Wish(keep=0.9))
    assert not missed.value.candidates[0].meets
    # A time can be met all the same.
    found = comparison({0.1: 0}, {1.0: 0.2, 0.1: 0.1})
    found.conditions[0].marks = [0.0] * QUESTIONS
    assert calibrate(found, "m", Wish(first_token=0.2)).candidates[0].kept_accuracy is None
    for wrong in (
        {},
        {"keep": 0.0},
        {"keep": 1.1},
        {"first_token": 0.0},
        {"keep": 1, "certainty": 0},
    ):
        with pytest.raises(InvalidInputError):
            Wish(**wrong)


CONFIGURATIONS = {
    "entry": "output: out  # here\nevaluation:\n  questions: 4\n  retention: 0.1  # share\n",
    "no entry": "output: out\nevaluation:\n    # few\n    questions: 4\nmodel: tiny\n",
    "no section": "# mine\noutput: out\nmodel: tiny\n",
}


@pytest.mark.parametrize("text", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_keeps_everything_else(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert write_retention(path, 0.07) == path
    assert read_config(path).evaluation.retention == 0.07
    after = path.read_text()
    for comment in ("# here", "# share", "# few", "# mine"):
        assert (comment in after) == (comment in text)
    other = yaml.safe_load(after)
    other.get("evaluation").pop("retention")
    wanted = yaml.safe_load(text)
    wanted.setdefault("evaluation", {}).pop("retention", None)
    assert other == wanted
    assert list(tmp_path.iterdir()) == [path]


def test_a_section_on_one_line_is_left_alone(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: out\nevaluation: {questions: 4}\n")
    with pytest.raises(InvalidInputError, match="without loss; give its evaluation section lines"):
        write_retention(path, 0.07)
    assert path.read_text() == "output: out\nevaluation: {questions: 4}\n"


def test_what_cannot_be_written_is_told_before_it_is_measured(tmp_path):
    path = tmp_path / "run.yaml"
    for text in ("{output: out, evaluation: {questions: 4}}\n", "{output: out}\n"):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match="cannot be changed without loss"):
            check_target(path)
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\x00\x00\x00\x20ftypisom\xff\xfe")
    with pytest.raises(InvalidInputError, match=r"clip\.mp4 is not UTF-8"):
        check_target(path)


def test_json_configurations_and_what_is_no_target(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"output": "out"}))
    write_retention(path, 0.2)
    assert json.loads(path.read_text()) == {"output": "out", "evaluation": {"retention": 0.2}}
    with pytest.raises(InvalidInputError, match="there is no"):
        write_retention(tmp_path / "none", 0.2)
    with pytest.raises(InvalidInputError):
        write_retention(tmp_path, 0.2)  # a folder without a policy


def test_a_policy_goes_by_what_was_written(random_qa, tmp_path):
    import cacovid

    config = cacovid.CrossAttentionConfig(hidden_size=192, slots=4, slot_width=16, head_size=8)
    cacovid.CrossAttentionPolicy(config).save_pretrained(tmp_path)
    assert random_qa.calibrated_retention(cacovid.load_policy(tmp_path)) is None
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert write_retention(tmp_path, 0.07) == tmp_path / "config.json"
    policy = cacovid.load_policy(tmp_path)
    assert policy.config.retention == 0.07
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert random_qa.calibrated_retention(policy) == 0.07
    assert random_qa.calibrated_retention("random") is None
    frames = np.zeros((16, 24, 24, 3), dtype=np.uint8)
    kept = [
        random_qa.ask(frames, "what ?", given, method=policy, max_new_tokens=1).tokens["kept"]
        for given in (None, 0.5)
    ]
    assert kept == [40, 288]
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace("0.07", "1.5")
    )
    with pytest.raises(InvalidInputError, match=r"retention is 1\.5"):
        cacovid.load_policy(tmp_path)
