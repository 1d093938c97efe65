"""`cacovid overlay` and `cacovid report`, run as users run them."""

import json

import pytest

from cacovid.cli import main

QUESTION = "what colour is the moving circle ?"


def test_overlay(cacovid, model_dir, clip, tmp_path):
    done = cacovid(
        "overlay", clip, QUESTION, "kept.png", "--model", model_dir, "--method", "uniform",
        "--retention", "0.05", "--max-new-tokens", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["tokens"] == {"video": 576, "kept": 28} and facts["method"] == "uniform"
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_report(cacovid, model_dir, clip, tmp_path):
    done = cacovid(
        "report", clip, QUESTION, "page.html", "--options", "red", "blue", "--model", model_dir,
        "--methods", "attention:2:question", "random", "--retention", "0.25", "0.05",
        "--max-new-tokens", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [(a["method"], a["retention"]) for a in facts["answers"]] == [
        (m, r) for m in ("attention:2:question", "random") for r in (0.05, 0.25)
    ]
    page = (tmp_path / "page.html").read_text()
    text = page[page.index('id="data">') + 10 : page.rindex("</script>\n<script>")]
    data = json.loads(text)
    assert data["grid"] == [16, 6, 6] and len(data["frames"]) == 16
    first, second = data["methods"]
    assert first["scores"] and second["scores"] is None
    assert [c["count"] for c in first["conditions"]] == [28, 144]
    assert [c["answer"] for c in (*first["conditions"], *second["conditions"])] == [
        a["answer"] for a in facts["answers"]
    ]
    assert "A. red" in page


@pytest.mark.parametrize(
    ("command", "file", "message"),
    [
        ("overlay", "kept.gif", ".gif"),
        ("overlay", "kept", "overlay 'kept' has no ending; expected .png"),
        ("report", "page.txt", "expected .html"),
        ("report", "none/page.html", "there is no folder none"),
    ],
)
def test_wrong_files(cacovid, clip, command, file, message):
    done = cacovid(command, clip, QUESTION, file)
    assert done.returncode == 2 and message in done.stderr


def test_precision_and_frames(cacovid, model_dir, clip, tmp_path):
    given = (clip, QUESTION, "--model", model_dir, "--max-new-tokens", "2", "--json")
    given += ("--dtype", "bfloat16", "--max-frames", "8")
    for command, file, more in (
        ("overlay", "kept.png", ("--method", "uniform", "--retention", "0.5")),
        ("report", "page.html", ("--methods", "uniform", "--retention", "0.5")),
    ):
        done = cacovid(command, *given[:2], file, *given[2:], *more)
        assert done.returncode == 0, done.stderr
        if command == "overlay":
            assert json.loads(done.stdout)["tokens"] == {"video": 288, "kept": 144}
    page = (tmp_path / "page.html").read_text()
    assert '"grid":[8,6,6]' in page.replace(" ", "")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--dtype", "int8"), "--dtype is 'int8'; expected one of"),
        (("--max-frames", "0"), "--max-frames is 0; expected at least 1"),
    ],
)
def test_wrong_precision_and_frames(capsys, clip, tmp_path, more, message):
    for command, file in (("overlay", "kept.png"), ("report", "page.html")):
        assert main([command, str(clip), QUESTION, str(tmp_path / file), *more]) == 2
        assert message in capsys.readouterr().err


def test_a_report_by_an_oracle_is_refused_before_anything_is_asked(cacovid, model_dir, clip):
    done = cacovid(
        "report", clip, QUESTION, "page.html", "--model", model_dir, "--methods", "uniform",
        "oracle",
    )  # fmt: skip
    assert done.returncode == 1 and "leave oracle out" in done.stderr, done.stderr
    assert "Asking" not in done.stderr and "--data" not in done.stderr


def test_a_report_of_a_wrong_method_is_refused_at_once(capsys, clip, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(clip), QUESTION, str(page), "--methods", "random", "nosuch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--methods: unknown method 'nosuch'" in line
