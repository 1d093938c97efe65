"""`cacovid eval`, run as users run it."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cacovid.commands.eval import Eval
from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.train import data
from cacovid.train.data import Samples, SceneReference, TrainingSample

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def arguments(model_dir):
    return (
        "eval", "--embedded", "--model", model_dir, "--methods", "random", "oracle",
        "attention:2:question", "--retention", "0.25", "0.05", "--limit", "9", "--seed", "4",
        "--max-new-tokens", "4", "--draws", "2",
    )  # fmt: skip


def run(folder, *command):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True,
        timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def written(arguments, tmp_path_factory):
    """A run with everything it writes."""
    folder = tmp_path_factory.mktemp("eval")
    done = run(folder, "-m", "cacovid", *arguments, "--timed", 1, "--output", "out", "--json")
    return folder / "out", json.loads(done.stdout)


def plain(results):
    """Rows without their times."""
    return [{name: row[name] for name in row if name != "seconds"} for row in results]


def test_embedded(written, model_dir):
    _, facts = written
    assert facts["questions"] == 9 and facts["model"] == str(model_dir)
    rows = {(row["method"], row["retention"]): row for row in facts["results"]}
    assert set(rows) == {("uncompressed", 1.0)} | {
        (m, r) for m in ("random", "oracle", "attention:2:question") for r in (0.25, 0.05)
    }
    assert rows["uncompressed", 1.0]["tokens"] == 576
    assert rows["oracle", 0.25]["tokens"] == 144 and rows["random", 0.05]["tokens"] == 28
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 1  # on nine videos: too few for intervals
        assert row["low"] is row["high"] is row["against"]["low"] is row["against"]["high"] is None
        assert set(row["seconds"]) >= {"read", "vision", "compress", "prefill", "decode"}


def test_embedded_alone_compares_the_table_of_the_task(cacovid, model_dir):
    done = cacovid(
        "eval", "--embedded", "--model", model_dir, "--retention", "0.1", "--limit", "2",
        "--timed", "0", "--max-new-tokens", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["method"] for row in json.loads(done.stdout)["results"]] == [
        "uncompressed", "random", "uniform", "attention", "attention:0", "attention:0:question",
        "attention:2", "attention:2:question", "blind-oracle", "oracle",
    ]  # fmt: skip


def test_what_is_written_says_the_same(written):
    folder, facts = written
    assert json.loads((folder / "results.json").read_text()) == facts
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [r["accuracy"] for r in facts["results"]]
    assert {row["low"] for row in rows} == {row["against.high"] for row in rows} == {""}
    page = (folder / "results.md").read_text()
    assert "±" not in page and "no intervals: from fewer than 10 videos" in page
    assert "synthetic task; no public benchmark run" in page and "| oracle |" in page
    for name in ("accuracy-tokens.png", "accuracy-time.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_types_and_draws_are_told(written):
    folder, facts = written
    rows = {(row["method"], row["retention"]): row for row in facts["results"]}
    assert sum(facts["types"].values()) == 9 and facts["draws"] == 2
    for (name, _), row in rows.items():
        drawn = row["draws"]
        assert bool(drawn) == (name in ("random", "oracle"))
        if drawn:
            assert drawn["count"] == 2
            # The mean of two is half-way between them.
            assert 2 * row["accuracy"] == pytest.approx(drawn["lowest"] + drawn["highest"])
        of_types = sum(row["by_type"][kind] * count for kind, count in facts["types"].items())
        assert of_types == pytest.approx(9 * row["accuracy"])
    page = (folder / "results.md").read_text()
    assert "- means of 2 draws: oracle, random" in page
    assert "25% kept, by question type (questions):" in page
    records = [json.loads(line) for line in (folder / "records-0.jsonl").open()]
    names = [name for name, _ in json.loads((folder / "run.json").read_text())["conditions"]]
    assert names.count("random (draw 2)") == 2 and names.count("attention:2:question") == 2
    assert all(len(record["mark"]) == len(names) == 11 for record in records)


def test_several_sets_and_fewer_frames_in_one_command(cacovid, model_dir, tmp_path):
    done = cacovid(
        "eval", "--embedded", "--split", "validation", "shifted", "--model", model_dir,
        "--methods", "uniform", "--retention", "0.5", "--limit", "3", "--timed", "0",
        "--max-frames", "8", "--dtype", "bfloat16", "--max-new-tokens", "2", "--by-type",
        "--output", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for split in ("validation", "shifted"):
        facts = json.loads((tmp_path / "out" / split / "results.json").read_text())
        assert facts["data"] == f"embedded/{split}/0" in done.stdout and facts["questions"] == 3
        assert [row["tokens"] for row in facts["results"]] == [288, 144]
        header = json.loads((tmp_path / "out" / split / "run.json").read_text())
        assert header["dtype"] == "torch.bfloat16" and header["reading"] == [8, 4.0]
    assert done.stdout.count("by question type, 50% kept") == 2


def test_two_processes_say_what_one_says(written, arguments, tmp_path):
    _, facts = written
    launch = (
        "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
        "--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", "-m", "cacovid",
    )  # fmt: skip
    done = run(tmp_path, *launch, *arguments, "--timed", 1, "--output", "two", "--json")
    two = json.loads(done.stdout)
    assert plain(two["results"]) == plain(facts["results"])
    lines = [
        (tmp_path / "two" / f"records-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)
    ]
    assert [len(own) for own in lines] == [5, 4]  # every other scene


def test_a_finished_run_is_not_done_again(written, arguments):
    folder, _ = written
    before = (folder / "records-0.jsonl").read_bytes()
    done = run(folder.parent, "-m", "cacovid", *arguments, "--timed", 1, "--output", "out")
    assert (folder / "records-0.jsonl").read_bytes() == before
    assert "same answers" in done.stdout
    assert "9 questions on 9 videos (synthetic" in done.stdout
    # Too few videos for intervals.
    page = (folder / "results.md").read_text()
    for text in (done.stdout, page):
        assert "no intervals: from fewer than 10 videos" in text and "±" not in text


def test_few_questions_of_the_task_come_from_many_scenes(monkeypatch):
    def made(split, seed, scenes, per_scene):
        assert per_scene == 8
        references = [SceneReference(split, seed, index) for index in range(scenes)]
        return Samples(tuple(
            TrainingSample(f"{r.key}/{n}", "?", "-", "exact", scene=r)
            for r in references for n in range(per_scene)
        ))  # fmt: skip

    monkeypatch.setattr(data, "embedded_samples", made)

    def asked(limit):
        """How many questions on each scene, always its first ones."""
        samples = Eval(embedded=True, limit=limit)._samples("test")
        counts = Counter(sample.scene.index for sample in samples)
        assert [s.id for s in samples] == [
            f"test/0/{i}/{n}" for i in counts for n in range(counts[i])
        ]
        return list(counts.values())

    assert asked(1) == [1] and asked(16) == [1] * 16
    assert asked(50) == [3] * 10 + [2] * 10 and asked(159) == [8] * 19 + [7]
    # As ever: stored results are of these questions.
    assert asked(160) == [8] * 20 and asked(165) == [8] * 20 + [5] and asked(304) == [8] * 38


def test_rows_that_may_be_bad(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    path = tmp_path / "q.csv"
    path.write_text("video,question,A,B,answer\na,?,x,y,A\nno,?,x,y,A\nno,!,x,y,A\n")
    with pytest.raises(InvalidInputError, match=r"2 of 3 rows .*line 3: .* raise max_skipped"):
        Eval(data=path)._samples("test")
    assert len(Eval(data=path, max_skipped=0.7)._samples("test")) == 1


def test_plots_that_cannot_be_drawn_are_told_first(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(Eval, "load", lambda *given: pytest.fail("something was loaded"))
    with pytest.raises(MissingDependencyError, match=r"install cacovid\[viz\]"):
        Eval(embedded=True, output=tmp_path).run()


def test_files_and_a_table(cacovid, model_dir, clip, tmp_path):
    rows = [
        {"question": "What colour is the circle?", "answer": "red", "video": clip.stem,
         "options": ["red", "blue"]},
        {"question": "And the ring?", "answer": "red", "video": "missing", "A": "red", "B": "blue"},
    ]  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(rows))
    given = (
        "eval", "--data", "data.json", "--video-root", clip.parent, "--model", model_dir,
        "--timed", "0",
    )  # fmt: skip
    done = cacovid(*given, "--methods", "uniform", "--retention", "0.1")
    assert done.returncode == 0, done.stderr
    assert "uniform" in done.stdout and "1 questions on 1 videos (data.json)" in done.stdout
    assert "left out row 1: there is no video" in done.stderr and "left out: 1 rows" in done.stdout
    done = cacovid(*given, "--methods", "oracle")
    assert done.returncode == 1 and "oracle knows the truth of the embedded task" in done.stderr
    assert "leave oracle out" in done.stderr and "Answering" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --embedded or --data"),
        (("--embedded", "--data", "x.json"), "either --embedded or --data"),
        (("--embedded", "--retention", "0"), "--retention is 0"),
        (("--embedded", "--retention", "0.1", "0.1"), "or one twice"),
        (("--embedded", "--limit", "0"), "--limit is 0"),
        (("--embedded", "--timed", "-1"), "--timed is -1"),
        (("--embedded", "--split", "train"), "--split is 'train'"),
        (("--embedded", "--split", "test", "test"), "or one twice"),
        (("--data", "x.json", "--split", "test", "shifted"), "leave it out with --data"),
        (("--data", "x.json", "--split", "shifted"), "leave it out with --data"),
        (("--embedded", "--draws", "0"), "--draws is 0"),
        (("--embedded", "--max-frames", "0"), "--max-frames is 0"),
        (("--embedded", "--dtype", "int8"), "--dtype is 'int8'"),
        (("--embedded", "--answers-from", "2"), "--answers-from is 2"),
        (("--data", "x.json", "--max-skipped", "2"), "--max-skipped is 2"),
    ],
)
def test_wrong_usage(cacovid, arguments, message):
    done = cacovid("eval", *arguments)
    assert done.returncode == 2 and message in done.stderr
