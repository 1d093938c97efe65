"""`cacovid eval`, run as users run it."""

import json

import pytest


def test_embedded(cacovid, model_dir):
    done = cacovid(
        "eval", "--embedded", "--model", model_dir, "--methods", "random", "oracle",
        "attention:2:question", "--retention", "0.25", "0.05", "--limit", "9", "--seed", "4",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["questions"] == 9 and facts["model"] == str(model_dir)
    rows = {(row["method"], row["retention"]): row for row in facts["results"]}
    assert set(rows) == {("uncompressed", 1.0)} | {
        (m, r) for m in ("random", "oracle", "attention:2:question") for r in (0.25, 0.05)
    }
    assert rows["uncompressed", 1.0]["tokens"] == 576
    assert rows["oracle", 0.25]["tokens"] == 144 and rows["random", 0.05]["tokens"] == 28
    for row in rows.values():
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    again = cacovid(
        "eval", "--embedded", "--model", model_dir, "--methods", "random", "--retention", "0.25",
        "--limit", "9", "--seed", "4", "--json",
    )  # fmt: skip
    same = json.loads(again.stdout)["results"][1]
    assert same["by_type"] == rows["random", 0.25]["by_type"]


def test_files_and_a_table(cacovid, model_dir, clip, tmp_path):
    rows = [
        {
            "problem": "What colour is the circle?", "solution": "A", "path": clip.name,
            "problem_type": "multiple choice", "options": ["A. red", "B. blue"],
        }
    ]  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(rows))
    done = cacovid(
        "eval", "--data", "data.json", "--video-root", clip.parent, "--model", model_dir,
        "--methods", "uniform", "--retention", "0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "uniform" in done.stdout and "1 questions (data.json)" in done.stdout
    done = cacovid(
        "eval", "--data", "data.json", "--video-root", clip.parent, "--model", model_dir,
        "--methods", "oracle",
    )  # fmt: skip
    assert done.returncode == 1 and "oracle knows the embedded task only" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --embedded or --data"),
        (("--embedded", "--data", "x.json"), "either --embedded or --data"),
        (("--embedded", "--retention", "0"), "--retention is 0"),
        (("--embedded", "--limit", "0"), "--limit is 0"),
        (("--embedded", "--split", "train"), "--split is 'train'"),
    ],
)
def test_wrong_usage(cacovid, arguments, message):
    done = cacovid("eval", *arguments)
    assert done.returncode == 2 and message in done.stderr
