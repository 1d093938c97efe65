"""Tables in parts: what was answered is not asked again, whoever answered it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cacovid.evaluation.answers import Reply
from cacovid.evaluation.compare import Comparison, Result, by_video, conditions_of
from cacovid.train.data import embedded_samples

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_parts", BENCH / "parts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_parts"] = module
    spec.loader.exec_module(module)
    return module


class Named:
    """A chooser by its name alone."""

    needs: frozenset[str] = frozenset()
    draws = False

    def __init__(self, name: str) -> None:
        self.name = name


class Oracle:
    """Answers "METHOD RETENTION QUESTION", and counts what it is asked."""

    asked: list[tuple[str, float, str]] = []  # noqa: RUF012 - reset by each test

    def __init__(self, choosers, retentions) -> None:
        self.conditions = conditions_of(choosers, retentions)

    def run(self, samples, *, done, share, on_result):
        for numbers in by_video(samples)[share[0] :: share[1]]:
            for sample in (samples[n] for n in numbers if samples[n].id not in done):
                replies = []
                for name, retention in self.conditions:
                    self.asked.append((name, retention, sample.id))
                    text = f"{name} {retention} {sample.id}"
                    replies.append(Reply(text, float(retention > 0.1), 4, 8))
                on_result(Result(sample.id, sample.kind, sample.video_key, replies=tuple(replies)))


@pytest.fixture
def asked():
    Oracle.asked.clear()
    return Oracle.asked


def _rows(bench, **wanted):
    return [bench.Row(Named(name), retentions) for name, retentions in wanted.items()]


def _check(found: Comparison, rows, samples) -> None:
    expected = [("uncompressed", 1.0)]
    expected += [(row.chooser.name, r) for row in rows for r in row.retentions]
    assert [(c.method, c.retention) for c in found.conditions] == expected
    assert found.kinds == [sample.kind for sample in samples]
    for condition in found.conditions:
        assert condition.marks == [float(condition.retention > 0.1)] * len(samples)


def test_rows_of_different_retentions_are_answered_once(bench, asked, tmp_path):
    samples = embedded_samples("validation", 0, 3, 2)
    parts = bench.Parts(tmp_path, {"model": "m"})
    rows = _rows(bench, a=(0.25, 0.1), b=(0.1,), c=(0.25, 0.1))
    found = parts.gather(rows, samples, Oracle)
    _check(found, rows, samples)
    own = [one for one in asked if one[0] != "uncompressed"]
    assert len(own) == len(set(own)) == 5 * len(samples)

    asked.clear()
    _check(parts.gather(rows, samples, Oracle), rows, samples)
    assert not asked

    more = _rows(bench, b=(0.25, 0.1), d=(0.1,), a=(0.25,))
    _check(parts.gather(more, samples, Oracle), more, samples)
    assert {one[:2] for one in asked} == {("uncompressed", 1.0), ("b", 0.25), ("d", 0.1)}


def test_further_questions_are_added(bench, asked, tmp_path):
    few, many = (embedded_samples("validation", 0, scenes, 2) for scenes in (2, 4))
    parts = bench.Parts(tmp_path, {"model": "m"})
    rows = _rows(bench, a=(0.1,))
    parts.gather(rows, few, Oracle)
    asked.clear()
    _check(parts.gather(rows, many, Oracle), rows, many)
    assert {one[2] for one in asked} == {s.id for s in many} - {s.id for s in few}


def test_processes_share_the_work(bench, asked, tmp_path):
    samples = embedded_samples("validation", 0, 5, 2)
    rows = _rows(bench, a=(0.1,), b=(0.25, 0.1))
    parts = bench.Parts(tmp_path, {"model": "m"})
    assert parts.gather(rows, samples, Oracle, (1, 2)) is None
    first = set(asked)
    _check(parts.gather(rows, samples, Oracle, (0, 2)), rows, samples)
    own = [one for one in asked if one[0] != "uncompressed"]  # each part asks for that
    assert len(own) == len(set(own)) and first < set(asked)


def test_answers_of_another_version_or_model_are_not_used(bench, asked, tmp_path):
    samples = embedded_samples("validation", 0, 1, 2)
    rows = _rows(bench, a=(0.1,))
    bench.Parts(tmp_path, {"model": "m"}).gather(rows, samples, Oracle)
    for common, changed in (
        ({"model": "other"}, rows),
        ({"model": "m"}, [replace(rows[0], version="2")]),
    ):
        asked.clear()
        _check(bench.Parts(tmp_path, common).gather(changed, samples, Oracle), changed, samples)
        assert asked


def test_an_unfinished_part_goes_on(bench, asked, tmp_path):
    samples = embedded_samples("validation", 0, 3, 2)
    rows = _rows(bench, a=(0.1,), b=(0.1,))

    def stop(done, of):
        if done == 3:
            raise KeyboardInterrupt

    parts = bench.Parts(tmp_path, {"model": "m"})
    with pytest.raises(KeyboardInterrupt):
        parts.gather(rows, samples, Oracle, on_result=stop)
    before = len({one[2] for one in asked})
    asked.clear()
    _check(parts.gather(rows, samples, Oracle), rows, samples)
    assert len({one[2] for one in asked}) == len(samples) - before


def test_the_real_evaluator_answers_the_same_in_parts(bench, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("yaml")
    sys.path.insert(0, str(BENCH))
    try:
        import evidence
    finally:
        sys.path.remove(str(BENCH))
    from cacovid.evaluation.answers import Answerer
    from cacovid.evaluation.choosers import choosers
    from cacovid.evaluation.compare import Evaluator

    whole = evidence.Bench.load(frozenset())
    encoder = whole.reward.encoder
    answerer = Answerer(whole.model, encoder.processor.tokenizer)
    samples = embedded_samples("validation", 0, 1, 4)
    chosen = choosers(["random", "oracle"], whole.model, {})

    def make(some, retentions):
        return Evaluator(encoder, answerer, some, retentions, 3)

    with torch.no_grad():
        at_once = make(chosen, [0.25, 0.05])
        expected = Comparison.of(at_once.conditions, at_once.run(samples).values())
    parts = bench.Parts(tmp_path, {"model": "m"})
    rows = [bench.Row(chosen[0], (0.25, 0.05)), bench.Row(chosen[1], (0.05,))]
    found = parts.gather(rows, samples, make)
    for condition in found.conditions:
        same = expected.find(condition.method, condition.retention)
        assert (condition.tokens, condition.marks) == (same.tokens, same.marks)
