"""The embedded model as it is stored: small, ordinary, and good at its task."""

import pytest
from safetensors import safe_open

from cacovid.evaluation.processes import Processes
from cacovid.evaluation.results import by_type, markdown, result_rows, table
from cacovid.evaluation.session import EvaluationRun
from cacovid.models.defaults import TINY_FOLDER
from cacovid.synthetic import QUESTION_TYPES
from cacovid.train.data import embedded_samples


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


@pytest.fixture(scope="module")
def comparison(qa):
    samples = embedded_samples("validation", 77, scenes=8, per_scene=7)
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
