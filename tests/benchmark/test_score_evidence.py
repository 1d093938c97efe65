"""The evidence for SCORE: what each run changes, and a page out of made-up answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("yaml")

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))  # it reads evidence.py beside it
    try:
        spec = importlib.util.spec_from_file_location(
            "bench_score_evidence", BENCH / "score_evidence.py"
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_score_evidence"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


def test_each_run_changes_what_it_is_called_after(bench):
    from cacovid.train.config import TrainConfig, build

    built = {name: build(TrainConfig, bench.configuration(name, 2), name) for name in bench.CHANGES}
    stored = built["stored"]
    assert stored.training.seed == 2 and stored.output.endswith("score-evidence/stored-2")
    assert stored.objective == "score" and stored.score.reading == "sparsity"
    assert [bool(stage.data.stills) for stage in stored.stages] == [True, False]
    alone = built["no-curriculum"]
    assert [stage.data for stage in alone.stages] == [stored.stages[-1].data]
    assert {run.training.steps for run in built.values()} == {240}
    assert built["no-surprise"].policy.settings == {**stored.policy.settings, "surprise": False}
    assert built["surplus"].score.reading == "surplus"
    for run in built.values():
        assert (run.reward, run.evaluation) == (stored.reward, stored.evaluation)
    short = build(TrainConfig, bench.configuration("stored", 0, steps=8, held_out=5), "short")
    assert [stage.steps for stage in short.stages] == [2, 6] and short.evaluation.questions == 5
    assert short.evaluation.retention == stored.evaluation.retention


#: Marks by type at 10% of 8 questions each, of two seeds where a run has them.
MARKS = {
    "uncompressed": ([1] * 8, [1] * 8),
    "stored-0": ([1] * 8, [1, 1, 1, 1, 0, 0, 0, 0]),
    "stored-1": ([1] * 7 + [0], [1, 1, 0, 0, 0, 0, 0, 0]),
    "cacovid": ([1] * 8, [1] * 7 + [0]),
    "random": ([1, 1, 1, 1, 0, 0, 0, 0], [0] * 8),
    "random (draw 2)": ([1, 1, 0, 0, 0, 0, 0, 0], [0] * 8),
    "blind-oracle": ([1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]),
    "blind-oracle-in-turn": ([1] * 7 + [0], [1, 1, 1, 0, 0, 0, 0, 0]),
}


@pytest.fixture
def runs(bench, monkeypatch, tmp_path):
    """Finished runs, and answers as `cacovid eval` stores them."""
    monkeypatch.setattr(bench, "RUNS", tmp_path)
    for name in ("stored-0", "stored-1", "surplus-0"):
        folder = tmp_path / name
        (folder / "policy").mkdir(parents=True)
        (folder / "after.json").write_text("{}")
        (folder / "before.json").write_text('{"accuracy": 0.25}')
        log = [
            {"step": step, "reward": step / 60, "kept": 1 / step, **greedy}
            for step, greedy in ((10, {}), (20, {"greedy": 0.5}), (30, {"greedy": 0.6}))
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    (tmp_path / "no-surprise-0").mkdir()  # not finished
    return tmp_path


def write_answers(runs):
    def named(name):
        return str(runs / name / "policy") if name.startswith("stored") else name

    conditions = [[named(name), 0.1 if number else 1.0] for number, name in enumerate(MARKS)]
    lines = []
    for place, kind in enumerate(("big_colour", "order")):
        for number in range(8):
            marks = [marks[place][number] for marks in MARKS.values()]
            lines.append(
                {"id": f"{kind}/{number}", "kind": kind, "video": f"v{number}",
                 "answer": ["x"] * len(marks), "mark": marks,
                 "tokens": [576, *[57] * (len(marks) - 1)],
                 "entering": [594, *[75] * (len(marks) - 1)]}
            )  # fmt: skip
    folder = runs / "eval-test"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"conditions": conditions}))
    (folder / "records-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_page_says_what_the_answers_say(bench, runs, tmp_path):
    write_answers(runs)
    out = tmp_path / "out"
    bench.main(["report", "--out", str(out)])
    facts = json.loads((out / "score-tiny.json").read_text())
    rows = {
        name: {row["method"]: row for row in own} for name, own in facts["test"]["rows"].items()
    }
    assert list(rows["all"]) == [
        "uncompressed", "stored", "cacovid", "random", "blind-oracle", "blind-oracle-in-turn",
    ]  # fmt: skip
    blind, aware = rows["question-independent"], rows["question-dependent"]
    assert blind["stored"]["accuracy"] == 15 / 16 and aware["stored"]["accuracy"] == 6 / 16
    assert blind["stored"]["draws"] == {"count": 2, "lowest": 7 / 8, "highest": 1.0}
    assert blind["random"]["accuracy"] == 6 / 16 and aware["cacovid"]["accuracy"] == 7 / 8
    found = facts["test"]["best_blind_oracle"]
    assert found["big_colour"]["served"] and found["big_colour"]["oracle"] == "blind-oracle"
    assert not found["order"]["served"] and found["order"]["kept"] == 3 / 8
    assert set(facts["curves"]) == {"stored-0", "stored-1", "surplus-0"}
    assert facts["curves"]["stored-0"][0] == {"step": 0, "greedy": 0.25}
    page = (out / "score-tiny.md").read_text()
    assert "synthetic task; no public benchmark run" in page.casefold()
    assert "| stored | 2 | 93.8 (" in page and "(87.5–100.0) |" in page
    assert "labelled so by the generator (big_colour; 8 questions)" in page
    assert "stored 93.8% [" in page and "Where it cannot: order." in page
    assert "![learning curves](score-tiny.png)" in page
    assert (out / "score-tiny.png").stat().st_size > 10_000


def test_evaluation_asks_for_all_finished_runs(bench, runs, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "run_cacovid", lambda *given: asked.append(given) or "")
    bench.main(["evaluate", "--split", "test", "shifted", "--questions", "40"])
    assert len(asked) == 2
    for given, split in zip(asked, ("test", "shifted"), strict=True):
        names = given[given.index("--methods") + 1 : given.index("--retention")]
        runs_named = [str(runs / name / "policy") for name in ("stored-0", "stored-1", "surplus-0")]
        assert list(names) == [*runs_named, *bench.BASELINES, *bench.ORACLES]
        assert given[given.index("--split") + 1] == split
        assert given[given.index("--output") + 1] == str(runs / f"eval-{split}")


def test_nothing_to_tell_is_said(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "RUNS", tmp_path)
    with pytest.raises(SystemExit, match="evaluate first"):
        bench.main(["report", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="train first"):
        bench.main(["evaluate"])
