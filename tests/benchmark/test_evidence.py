"""The evidence for CPO: runs at hand, and tables that outlast the runs they were made of."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("yaml")

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module("evidence")
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def runs(bench, monkeypatch, tmp_path):
    module = sys.modules["training_runs"]
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(module, "KEPT", tmp_path / "policies")
    monkeypatch.setattr(module.finished, "__defaults__", (tmp_path / "runs",))
    return module


def row(method, retention=0.1, accuracy=0.5):
    return {"method": method, "retention": retention, "accuracy": accuracy}


def table(*rows, **changed):
    facts = {"results": [row("uncompressed", 1.0), *rows], "questions": 9, "seed": 0, "model": "m"}
    return {**facts, **changed}


def test_rows_at_other_shares_stay_if_the_weights_are_the_same(bench):
    old = table(row("ocss-1"), row("ocss-1", 0.05), row("self-0", 0.05))
    old["versions"] = {"ocss-1": "a", "self-0": "b"}
    asked = table(row("ocss-1", accuracy=0.9), row("self-0"))
    asked["versions"] = {"ocss-1": "a", "self-0": "c"}
    found = bench.with_earlier_rows(asked, old)
    assert [(one["method"], one["retention"]) for one in found["results"][1:]] == [
        ("ocss-1", 0.1), ("ocss-1", 0.05), ("self-0", 0.1),
    ]  # fmt: skip
    assert found["results"][1]["accuracy"] == 0.9
    assert found["versions"] == asked["versions"]


def test_rows_of_runs_that_are_gone_stay_in_a_table(bench):
    new = table(row("ocss-1", accuracy=0.9), row("random"))
    old = table(row("ocss-1", accuracy=0.1), row("imitation-0"), row("imitation-0", 0.05), row("x"))
    found = bench.with_earlier_rows(new, old)["results"]
    assert [(one["method"], one["retention"]) for one in found] == [
        ("uncompressed", 1.0), ("imitation-0", 0.1), ("imitation-0", 0.05), ("ocss-1", 0.1),
        ("random", 0.1),
    ]  # fmt: skip
    assert found[3]["accuracy"] == 0.9  # answered anew: not the old one
    kept = bench.with_earlier_rows(table(row("ocss-1", accuracy=0.9)), old, methods=True)
    assert [one["method"] for one in kept["results"][1:]] == [
        "imitation-0", "imitation-0", "ocss-1", "x",
    ]  # fmt: skip


@pytest.mark.parametrize("changed", [{"questions": 8}, {"seed": 1}, {"model": "other"}])
def test_a_table_of_other_questions_or_of_another_model_gives_nothing(bench, changed):
    new = table(row("random"))
    assert bench.with_earlier_rows(new, table(row("ocss-1"), **changed)) == new
    assert bench.with_earlier_rows(new, {}) == new


def test_a_kept_policy_serves_without_its_run(runs):
    import torch

    from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy, load_policy

    assert set(runs.trained_policies()) == set(runs.STORED)  # there in every checkout
    policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=32))
    folder = runs.RUNS / "ocss-0"
    policy.save_pretrained(folder / "policy")
    assert "ocss-0" not in runs.trained_policies()  # not finished
    (folder / "after.json").write_text("{}")
    assert runs.trained_policies()["ocss-0"] == folder / "policy"
    assert runs.keep_policies() == [runs.KEPT / "ocss-0"]
    (folder / "after.json").unlink()
    kept = load_policy(runs.trained_policies()["ocss-0"])
    for mine, other in zip(policy.parameters(), kept.parameters(), strict=True):
        assert mine.dtype == other.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    assert (runs.KEPT / "ocss-0" / "model.safetensors").stat().st_size < 0.6 * (
        folder / "policy" / "model.safetensors"
    ).stat().st_size
