"""The bench of the methods' own time: that each chooses what it should, and where it is ended."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from cacovid import methods
from cacovid.types import Selection

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "compression.py"


def load():
    spec = importlib.util.spec_from_file_location("bench_compression", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_compression"] = module
    spec.loader.exec_module(module)
    return module


bench = load()


def test_every_method_is_measured_or_explained():
    told = {name.partition(":")[0].partition(",")[0] for name in bench.ROWS}
    assert set(methods.names()) <= told | set(bench.LEFT_OUT)
    assert set(bench.LEFT_OUT) <= set(methods.names())


def test_the_video_has_something_still_and_something_moving():
    prompt = bench.make_prompt(4 * 196, 256)
    assert prompt.embeds.dtype == torch.bfloat16 and prompt.grid.sizes == ((4, 14, 14),)
    frames = prompt.video_embeds.float().view(4, 196, 256)
    assert frames.square().mean(dim=(1, 2)).sub(1).abs().max() < 0.05  # noise takes the old's place
    cosine = torch.cosine_similarity(frames[:-1], frames[1:], dim=-1)
    assert (cosine > 0.8).float().mean() > 0.1 and (cosine < 0.2).float().mean() > 0.1
    assert torch.equal(bench.make_prompt(4 * 196, 256).embeds, prompt.embeds)
    with pytest.raises(ValueError, match="multiple of 196"):
        bench.make_prompt(200, 8)


@pytest.mark.parametrize("name", [name for name in bench.ROWS if name != "vision attention"])
@torch.no_grad()
def test_a_line_times_the_method_that_it_names(name):
    row = bench.ROWS[name]
    prompt = bench.make_prompt(2 * 196, 64, row.extras)
    found = row.make(prompt, 0.1)()
    assert isinstance(found, Selection) and found.grid == prompt.grid
    if name in ("fastv", "framefusion"):
        # 28 layers of which the first ran on all: on average at most a tenth, so fewer at the end.
        assert 0 < len(found.keep) < 39
    else:
        assert found.counts == (39,)
    if name == "random":
        assert torch.equal(found.keep, methods.get("random")(prompt, 0.1).keep)


def test_vision_attention_is_a_mean_of_probabilities(monkeypatch):
    monkeypatch.setattr(bench, "TOWER", (2, 9, 4))
    received = bench.vision_attention(bench.make_prompt(2 * 196, 8), 0.1)()
    torch.testing.assert_close(received.sum(dim=1), torch.ones(2))


def busy(prompt, retention):
    def run():
        while True:
            torch.ones(1000).sum()

    return run if prompt.grid.num_frames > 2 else list  # what warms up ends


def greedy(prompt, retention):
    return (lambda: torch.ones(1 << 27)) if prompt.grid.num_frames > 2 else list


def test_what_takes_too_long_or_too_much_is_ended_and_said(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench,
        "ROWS",
        {"busy": bench.Row(busy), "greedy": bench.Row(greedy), "uniform": bench.ROWS["uniform"]},
    )
    lines = bench.main(
        ["--tokens", "588", "--hidden", "16", "--limit", "0.1", "--memory", "0.1",
         "--out", str(tmp_path)]
    )  # fmt: skip
    by = {line["method"]: line for line in lines}
    assert by["busy"]["note"] == "over 0.1 s" and not by["busy"]["ms"]
    assert by["greedy"]["note"] == "over 0.1 GB" and not by["greedy"]["ms"]
    assert float(by["uniform"]["ms"]) > 0
    page = (tmp_path / "compression-cpu.md").read_text()
    assert "| over 0.1 s |" in page and "| over 0.1 GB |" in page
    assert (tmp_path / "compression-cpu.png").stat().st_size > 5000


def test_lines_that_are_there_stay(tmp_path):
    given = ["--hidden", "16", "--rounds", "2", "--out", str(tmp_path)]
    bench.main([*given, "--tokens", "196", "392", "--methods", "random", "uniform"])
    path = tmp_path / "compression-cpu.csv"

    def stored():
        with path.open(newline="") as file:
            return {(line["method"], line["tokens"]): line for line in csv.DictReader(file)}

    before = stored()
    assert list(before) == [
        ("random", "196"), ("uniform", "196"), ("random", "392"), ("uniform", "392"),
    ]  # fmt: skip
    bench.main([*given, "--tokens", "392", "--methods", "uniform"])
    after = stored()
    assert list(after) == list(before)
    for key, line in after.items():
        assert (line == before[key]) == (key != ("uniform", "392"))
        assert float(line["p20_ms"]) <= float(line["ms"]) <= float(line["p80_ms"])
        assert float(line["products"]) > 0
    page = (tmp_path / "compression-cpu.md").read_text()
    assert "| 196: seconds |" in page and "| 392: seconds |" in page and "Not measured:" in page
    assert "- `evs` at 196 and 392 tokens: not in this run" in page and "- `uniform` at" not in page


def test_wrong_options():
    for arguments in (["--tokens", "200"], ["--retention", "0"], ["--methods", "nothing"]):
        with pytest.raises(SystemExit):
            bench.main(arguments)
