"""The CUDA ops give the reference's integers, bit for bit (needs a GPU and the library)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import backends, ops
from cacovid.backends import available
from cacovid.testing import Case, cases_of
from cacovid.testing.cases import GRIDS, token_scores

_CUDA = available()["cuda"]
pytestmark = [
    pytest.mark.skipif(not _CUDA.available, reason=_CUDA.reason or "available"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _to_device(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.cuda() if isinstance(v, Tensor) else v for v in values)


@pytest.mark.parametrize(
    "case",
    [
        case
        for op in ("select_tokens", "ocss_sample", "bernoulli_sample", "gather")
        for case in cases_of(op)
    ],
    ids=lambda case: case.id,
)
def test_cuda_equals_reference(case: Case) -> None:
    positional, named = case.make()
    function = getattr(ops, case.op)
    expected = function(*positional, **named, backend="reference")
    got = function(*_to_device(positional), **named, backend="cuda")
    assert got.is_cuda and got.dtype == expected.dtype
    assert torch.equal(got.cpu(), expected)


def test_nothing_waits_for_the_device() -> None:
    grid = GRIDS["frames_of_196"]
    scores = token_scores(grid.num_tokens, "normal").cuda()
    frames, rows = scores[: grid.num_frames].clone(), torch.randn(grid.num_tokens, 64).cuda()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        keep = ops.select_tokens(scores, frames, grid, 0.1, backend="cuda")
        ops.gather(rows, keep, backend="cuda")
        ops.ocss_sample(scores, grid, 0.1, 8, seed=1, backend="cuda")
        ops.bernoulli_sample(scores, 8, seed=1, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_selection_replays_in_a_graph() -> None:
    grid = GRIDS["ragged"]
    scores = token_scores(grid.num_tokens, "normal").cuda()
    ops.select_tokens(scores, None, grid, 0.2, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep = ops.select_tokens(scores, None, grid, 0.2, backend="cuda")
    fresh = token_scores(grid.num_tokens, "ties", seed=9)
    scores.copy_(fresh)
    graph.replay()
    assert torch.equal(keep.cpu(), ops.select_tokens(fresh, None, grid, 0.2))


_BROKEN = """
import torch
from cacovid import ops
scores = torch.zeros(8, device="cuda")
scores[5] = float("nan")
ops.select_tokens(scores, None, [(2, 2, 2)], 0.5, backend="cuda")
torch.cuda.synchronize()
"""


def test_nan_stops_the_device() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BROKEN],
        capture_output=True,
        text=True,
        cwd=Path(backends.__file__).parents[1],
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "token_scores has nan at 5" in (done.stdout + done.stderr).lower()
