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
        ("report", "page.txt", "expected .html"),
        ("report", "none/page.html", "there is no folder none"),
    ],
)
def test_wrong_files(cacovid, clip, command, file, message):
    done = cacovid(command, clip, QUESTION, file)
    assert done.returncode == 2 and message in done.stderr


def test_a_report_of_a_wrong_method_is_refused_at_once(capsys, clip, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(clip), QUESTION, str(page), "--methods", "random", "nosuch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--methods: unknown method 'nosuch'" in line
