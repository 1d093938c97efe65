"""The bench of more frames for the same tokens: what is read, kept, found again and written."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("av")

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "frames.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_frames", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_frames"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        questions=3, budget=[72, 20], split="validation", seed=1, draws=2,
        methods=["random", "uniform"], runs=tmp_path / "runs", out=tmp_path / "out",
    )  # fmt: skip


def test_frames_that_are_read(bench):
    from cacovid.train.data import embedded_samples, read_sample_frames

    (sample,) = embedded_samples("validation", 1, 1, 1)
    whole = read_sample_frames(sample)
    by = {(reading.part, reading.frames): reading for reading in bench.readings()}
    assert list(by) == [(part, n) for part, own in (("more", (4, 8, 16)), ("rate", (16, 32, 64)))
                        for n in own]  # fmt: skip
    assert [reading.tokens for reading in by.values()] == [144, 288, 576, 576, 1152, 2304]
    assert np.array_equal(by["more", 4].read(sample), whole[[0, 5, 10, 15]])
    assert np.array_equal(by["more", 16].read(sample), by["rate", 16].read(sample))
    held = by["rate", 32].read(sample).astype(np.float32)
    assert held.shape == (32, 144, 144, 3)
    # The codec's loss apart, a held frame is its neighbour, and not the next one of the clip.
    still = np.abs(held[::2] - held[1::2]).mean()
    moving = np.abs(held[1:-1:2] - held[2::2]).mean()
    assert 4 * still < moving


def test_budgets_are_kept_and_answers_found_again(bench, random_qa, options, capsys):
    wanted = bench.readings(base=2, times=(1, 2))
    assert [reading.frames for reading in wanted] == [2, 4, 16, 32]
    rows = bench.measure(random_qa, wanted, options)
    for row in rows:
        all_tokens = row["frames"] * 36
        if row["method"] == "uncompressed":
            assert row["tokens"] == all_tokens and row["budget"] in (None, 72)
        else:
            assert row["tokens"] == row["budget"] < all_tokens
            assert bool(row["draws"]) == (row["method"] == "random")
    # Two frames are 72 tokens: nothing to compress at that budget.
    assert bench.find(rows, 2, 72, "uniform") == {
        **bench.find(rows, 2, None, "uncompressed"), "budget": 72,
    }  # fmt: skip
    kept = {path: path.read_bytes() for path in options.runs.rglob("records-*.jsonl")}
    assert len(kept) == 4
    assert bench.measure(random_qa, wanted, options) == rows
    assert {path: path.read_bytes() for path in options.runs.rglob("records-*.jsonl")} == kept
    bench.write(rows, options, 8192)
    stored = json.loads((options.out / "frames-tiny.json").read_text())
    assert stored["results"] == rows and stored["questions"] == 3
    page = (options.out / "frames-tiny.md").read_text()
    assert page in capsys.readouterr().out and "no public benchmark run" in page
    assert "| tokens kept | method | 2 frames (72 tokens) | 4 frames (144 tokens) |" in page
    assert "| tokens kept | method | 16 frames (576 tokens) | 32 frames (1,152 tokens) |" in page
    full = bench.find(rows, 32, None, "uncompressed")["accuracy"]
    line = page.splitlines()[-5]
    assert line.startswith("| all | uncompressed | ") and f"| {100 * full:.1f} |" in line
    assert (options.out / "frames-tiny.png").stat().st_size > 10_000
