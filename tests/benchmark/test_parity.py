"""The count of rollouts on which two samplers differ: it compares all, and it sees a difference."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from cacovid import ops
from cacovid.backends import available

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "parity.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_parity"] = module
    spec.loader.exec_module(module)
    return module


def sampler(op, change=lambda drawn, backend: drawn):
    """The reference in place of every backend: the bookkeeping needs no library."""
    own = getattr(ops, op)

    def sample(*given, backend, **named):
        return change(own(*given, **named, backend="reference"), backend)

    return sample


@pytest.mark.skipif(not available()["cpu"].available, reason="the compiled ops are missing")
def test_the_compiled_samplers_are_the_reference(bench, capsys):
    with pytest.raises(SystemExit) as done:
        bench.main(["--rollout-frames", "3000", "--seed", "3"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "0 rollouts differ" in out and "with the reference: 0 differ" in out


def test_all_is_compared_where_all_is_asked_for(bench, monkeypatch):
    for op in ("ocss_sample", "frame_sample"):
        monkeypatch.setattr(ops, op, sampler(op))
    counts = bench.compare("cpu", "reference", 3000, 1.0, seed=1)
    assert counts.drawn == counts.compared >= 3000 and counts.alone == 0
    assert counts.frame_rollouts > 0 and not counts.wrong


@pytest.mark.parametrize("wrong", ["ocss_sample", "frame_sample"])
def test_a_difference_is_seen(bench, monkeypatch, capsys, wrong):
    def last_entry(drawn, backend):
        if backend == "cpu":
            drawn = drawn.clone()
            drawn[-1, -1] = ~drawn[-1, -1]
        return drawn

    for op in ("ocss_sample", "frame_sample"):
        monkeypatch.setattr(ops, op, sampler(op, last_entry) if op == wrong else sampler(op))
    with pytest.raises(SystemExit) as done:
        bench.main(["--rollout-frames", "500", "--reference-share", "1"])
    assert done.value.code == 1
    out = capsys.readouterr().out
    assert (": 0 rollouts differ" in out) == (wrong != "ocss_sample")
    assert (": 0 differ" in out) == (wrong != "frame_sample")


def test_on_cuda_the_cpu_draws_all_of_it_again(bench, monkeypatch, tmp_path, capsys):
    asked = []

    def compare(*given):
        asked.append(given)
        return bench.Counts(100, 100, 0, 0, 7, 0)

    monkeypatch.setattr(bench, "compare", compare)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    page = tmp_path / "parity.md"
    page.write_text("# Title\n\nOn the CPU.\n\n## On a GPU\n\nnot run yet\n\n## After\n\nmore\n")
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            bench.main(["--device", "cuda", "--write", str(page)])
        assert done.value.code == 0
    assert asked == [("cuda", "cpu", 10_000_000, 1.0, 0)] * 2
    text = page.read_text()
    assert text.startswith("# Title\n\nOn the CPU.\n\n## On a GPU\n\n`python bench/parity.py")
    assert text.endswith("\n\n## After\n\nmore\n") and "not run yet" not in text
    assert text.count("100 rollout-frames drawn by the CUDA sampler, 100 of them compared") == 1
    assert "Some GPU, torch" in text and text.count("## On a GPU") == 1
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda", "--write", str(tmp_path / "new.md")])
    assert "## On a GPU" in (tmp_path / "new.md").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        bench.main(["--write", str(page)])
    assert "expected --device cuda" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_told(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err
