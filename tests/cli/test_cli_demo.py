"""`cacovid demo`: the table and the files."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

from cacovid.cli import main
from cacovid.commands.demo import Demo


def test_the_demo_tells_and_draws(capsys, model_dir, tmp_path):
    folder = tmp_path / "demo"
    assert main(["demo", "--folder", str(folder), "--model", str(model_dir)]) == 0
    out = capsys.readouterr().out
    # Untrained, the model never stops by itself; a small table it has to be.
    assert len(out.splitlines()) < 40
    assert f"Model {model_dir}, method attention" in out and "Embedded" not in out
    # What it proposes to type can be typed.
    (proposed,) = (line for line in out.splitlines() if line.startswith("Yours:"))
    assert main([*shlex.split(proposed)[2:], "--max-new-tokens", "2"]) == 0
    assert all(share in out for share in ("100%", "25%", "10%"))
    assert all(tokens in out for tokens in (" 576 ", " 144 ", " 57 "))
    assert "uniform" in out and "random" in out and "1. " in out
    assert "no public benchmark run" in out
    for name in ("clip.mp4", "overlay.png", "overlay.mp4"):
        assert name in out
        assert (folder / name).stat().st_size > 1000
    assert sorted(path.name for path in folder.iterdir()) == [
        "clip.mp4", "overlay.mp4", "overlay.png",
    ]  # fmt: skip


def test_the_demo_refuses_what_cannot_be(capsys, tmp_path):
    assert main(["demo", "--method", "nosuch"]) == 2
    assert main(["demo", "--seed", "-1"]) == 2
    (tmp_path / "file").touch()
    assert main(["demo", "--folder", str(tmp_path / "file")]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and "is a file" in seen.err


def test_what_the_demo_proposes_names_its_method_and_the_average_over_layers(capsys, tmp_path):
    answer = SimpleNamespace(
        method="fastv", text="red", timings={"read": 0.1},
        tokens={"video": 576, "kept": 57, "layer_average": 205},
    )  # fmt: skip
    question = SimpleNamespace(text="What colour?", answer="blue")
    clip = tmp_path / "clip.mp4"
    Demo(method="fastv")._print(clip, [question], [[answer] * 3], {}, [])
    out = capsys.readouterr().out
    assert "205" in out and " 57 " not in out and "truth" in out and "right" not in out
    (proposed,) = (line for line in out.splitlines() if line.startswith("Yours:"))
    assert shlex.split(proposed)[-2:] == ["--method", "fastv"]
