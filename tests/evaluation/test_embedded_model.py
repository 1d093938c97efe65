"""The embedded model as it is stored: small, ordinary, and good at its task."""

import pytest
from safetensors import safe_open

from cacovid.evaluation.processes import Processes
from cacovid.evaluation.questions import read_questions
from cacovid.evaluation.results import by_type, markdown, result_rows, table
from cacovid.evaluation.session import EvaluationRun
from cacovid.models.defaults import TINY_FOLDER
from cacovid.models.video_qa import with_options
from cacovid.synthetic import QUESTION_TYPES, make_scene
from cacovid.train.data import embedded_samples
from cacovid.train.wording import word_problem


@pytest.fixture(scope="module")
def qa():
    from cacovid import VideoQA

    return VideoQA.from_pretrained("tiny", device="cpu")


def test_what_is_stored_is_small_and_in_half_precision():
    size = sum(path.stat().st_size for path in TINY_FOLDER.rglob("*") if path.is_file())
    assert size <= 10 * 2**20
    with safe_open(TINY_FOLDER / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}


def test_transformers_loads_it_as_any_model():
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model, report = AutoModelForImageTextToText.from_pretrained(
        TINY_FOLDER, output_loading_info=True
    )
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(TINY_FOLDER).chat_template


def test_questions_of_a_file_are_put_as_ask_puts_them(qa, tmp_path):
    make_scene("test", 0, 0).write(tmp_path / "clip.mp4")
    (tmp_path / "q.csv").write_text(
        "video,question,A,B,C,D,answer\n"
        "clip.mp4,What colour is the striped star?,white,purple,orange,green,C\n"
    )
    samples = read_questions(tmp_path / "q.csv")
    run = EvaluationRun(qa, samples, ["uniform"], [0.5], timed=0)
    run.prepare()
    colours = ("white", "purple", "orange", "green")
    asked = with_options("What colour is the striped star?", colours)
    assert word_problem(run.samples[0]) == asked
    assert run.run(Processes()).conditions[0].accuracy == 1.0


def test_training_and_filter_put_them_so_too(tmp_path, monkeypatch):
    import json

    from cacovid.commands.filter import Filter
    from cacovid.train import filtering
    from cacovid.train.config import read_config
    from cacovid.train.run import prepare

    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "other.mp4").write_bytes(b"x")
    row = {"problem": "Which?", "solution": "A", "problem_type": "multiple choice",
           "options": ["red", "blue"], "path": "clip.mp4"}  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps([row]))
    (tmp_path / "held.json").write_text(json.dumps([{**row, "path": "other.mp4"}]))
    files = {"data": {"file": "data.json"}, "evaluation": {"file": "held.json"}}
    (tmp_path / "run.json").write_text(json.dumps({"output": "out", "model": "tiny", **files}))
    monkeypatch.chdir(tmp_path)
    run = prepare(read_config("run.json"))
    asked = [*run.curriculum.samples, *run.held_out]
    monkeypatch.setattr(filtering, "BlindReader", lambda *a: lambda s: float(asked.append(s) or 0))
    Filter(tmp_path / "run.json", tmp_path / "kept.json").run()
    assert [word_problem(sample) for sample in asked] == ["Which?\nA. red\nB. blue"] * 3


@pytest.fixture(scope="module")
def comparison(qa):
    samples = embedded_samples("validation", 77, scenes=10, per_scene=6)
    names = ["cacovid", "cacovid:self-attention", "random", "blind-oracle", "oracle"]
    run = EvaluationRun(qa, samples, names, [0.1], seed=1, timed=0)
    run.prepare()
    return run.run(Processes())


def test_it_answers_and_pruning_matters(comparison):
    accuracy = {(c.method, c.retention): c.accuracy for c in comparison.conditions}
    assert accuracy["uncompressed", 1.0] >= 0.8
    assert accuracy["oracle", 0.1] >= 0.8
    assert accuracy["random", 0.1] <= accuracy["oracle", 0.1] - 0.1
    assert accuracy["blind-oracle", 0.1] <= accuracy["oracle", 0.1] - 0.1


def test_the_default_is_a_trained_policy(qa, comparison):
    accuracy = {(c.method, c.retention): c.accuracy for c in comparison.conditions}
    assert qa.method.name == "cacovid" and qa.method.question_aware
    assert accuracy["cacovid", 0.1] >= accuracy["blind-oracle", 0.1] + 0.1
    assert accuracy["cacovid:self-attention", 0.1] > accuracy["random", 0.1]


def test_results_hold_what_was_measured(comparison):
    rows = result_rows(comparison)
    assert [row["method"] for row in rows] == [
        "uncompressed", "cacovid", "cacovid:self-attention", "random", "blind-oracle", "oracle",
    ]  # fmt: skip
    assert {row["tokens"] for row in rows[1:]} == {57.0} and rows[0]["tokens"] == 576.0
    assert rows[0]["against"]["difference"] == 0.0
    for row, condition in zip(rows, comparison.conditions, strict=True):
        assert row["low"] <= row["accuracy"] <= row["high"]
        kinds = by_type(comparison, condition)
        assert set(kinds) <= set(QUESTION_TYPES)
        total = sum(kinds[kind] for kind in comparison.kinds)
        assert total / len(comparison.kinds) == pytest.approx(condition.accuracy)
    columns, cells = table(rows, [0.1])
    assert columns == ["method", "100%", "10%"] and cells[0][0] == "cacovid"
    assert markdown(columns, cells).count("\n") == 7
