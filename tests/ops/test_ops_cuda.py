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
from cacovid.testing import EXACT, Case, cases_of
from cacovid.testing.budgets import assert_within_budget
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid, Prompt

_CUDA = available()["cuda"]
pytestmark = [
    pytest.mark.skipif(not _CUDA.available, reason=_CUDA.reason or "available"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _to_device(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.cuda() if isinstance(v, Tensor) else v for v in values)


def _on_device(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in values.items()}


@pytest.mark.parametrize(
    "case", [case for op in EXACT for case in cases_of(op)], ids=lambda case: case.id
)
def test_cuda_equals_reference(case: Case) -> None:
    positional, named = case.make()
    function = getattr(ops, case.op)
    expected = function(*positional, **named, backend="reference")
    got = function(*_to_device(positional), **_on_device(named), backend="cuda")
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    for mine, plain in pairs:
        assert mine.is_cuda and mine.dtype == plain.dtype
        assert torch.equal(mine.cpu(), plain)


@pytest.mark.parametrize(
    ("size", "retention"),
    [
        ((4096, 14, 14), 0.1),  # the most frames that one launch serves
        ((4096, 2, 2), 0.1),  # fewer chosen tokens than frames
        ((32, 48, 48), 0.1),  # frames of 2,304 tokens
        ((9000, 3, 3), 0.2),  # two launches
        ((2, 120, 120), 0.05),  # likewise
    ],
)
def test_large_videos_and_packs(size: tuple[int, int, int], retention: float) -> None:
    small = [(1 + i % 3, 2, 1 + i % 4) for i in range(40)]  # more than a launch takes
    grid = Grid([*small[:20], size, *small[20:]])
    tokens = token_scores(grid.num_tokens, "ties")
    frames, rows = token_scores(grid.num_frames, "normal", 1), torch.randn(grid.num_tokens, 9)
    positions = torch.arange(3 * grid.num_tokens).view(3, -1)
    keep = ops.select_tokens(tokens, frames, grid, retention, backend="cpu")
    got = ops.select_and_gather(
        tokens.cuda(),
        frames.cuda(),
        rows.cuda(),
        grid,
        retention,
        position_ids=positions.cuda(),
        backend="cuda",
    )
    for mine, plain in zip(got, (keep, rows[keep], positions[:, keep]), strict=True):
        assert torch.equal(mine.cpu(), plain)


@pytest.mark.parametrize("rollouts", [1, 32, 300])
def test_token_rollouts_of_packs(rollouts: int) -> None:
    """More videos than a launch takes, one of frames that need two, and one of many frames."""
    small = [(1 + i % 3, 2, 1 + i % 4) for i in range(70)]
    grid = Grid([*small[:20], (2, 50, 60), *small[20:], (512, 7, 7)])
    scores = token_scores(grid.num_tokens, "ties")
    named: dict[str, Any] = {"seed": 2**64 - 1, "offset": 2**32 - 3}
    expected = ops.ocss_sample(scores, grid, 0.1, rollouts, **named, backend="cpu")
    got = ops.ocss_sample(scores.cuda(), grid, 0.1, rollouts, **named, backend="cuda")
    assert torch.equal(got.cpu(), expected)
    coins = ops.bernoulli_sample(scores, rollouts, grid=grid, seed=3, backend="cpu")
    assert torch.equal(
        ops.bernoulli_sample(scores.cuda(), rollouts, grid=grid, seed=3, backend="cuda").cpu(),
        coins,
    )


@pytest.mark.parametrize("kind", ["normal", "peaked", "ties", "huge"])
def test_frame_rollouts_of_long_videos(kind: str) -> None:
    grid = Grid([(4096, 1, 1), (32, 1, 1), *[(9, 1, 1)] * 70])
    frames = token_scores(grid.num_frames, kind)
    named: dict[str, Any] = {"seed": 2**64 - 1, "offset": 2**32 - 3}
    expected = ops.frame_sample(frames, grid, 0.1, 40, **named, backend="cpu")
    got = ops.frame_sample(frames.cuda(), grid, 0.1, 40, **named, backend="cuda")
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("op", ["farthest_point", "density_peaks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_chosen_as_on_the_cpu(op: str, dtype: torch.dtype) -> None:
    # Few rows are the matter of one block; 700 of 800 entries are not.
    for count, width, k in ((300, 100, 30), (700, 800, 70), (129, 7, 129)):
        rows = token_scores(count * width, "normal").view(count, width).to(dtype)
        for kind in (rows, rows.round(), rows[torch.arange(count) * 7 % 50]):
            function = getattr(ops, op)
            expected = function(kind, k, backend="cpu")
            assert torch.equal(function(kind.cuda(), k, backend="cuda").cpu(), expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("grid", ["one_token", "ragged", "frames_of_1000"])
def test_loss_and_gradient_are_within_their_budget(grid: str, kl_weight: float) -> None:
    counts = GRIDS[grid].num_tokens, GRIDS[grid].num_frames
    scores = [token_scores(n, "normal", seed) for seed, n in enumerate(counts * 2)]
    masks = [torch.rand(115, n, generator=torch.Generator().manual_seed(n)) < 0.1 for n in counts]
    rewards = [token_scores(115, "normal", seed) for seed in (8, 9)]

    def gradients(dtype: torch.dtype, device: str, backend: str) -> list[Tensor]:
        given = [t.to(device, dtype, copy=True) for t in scores]
        leaves = [t.requires_grad_() for t in given[:2]]
        others = [t.to(device) for t in masks], [t.to(device, dtype) for t in rewards]
        loss = ops.cpo_loss(
            *leaves, *given[2:], *others[0], *others[1], kl_weight=kl_weight, backend=backend
        )
        return [*loss, *torch.autograd.grad(loss.total, leaves)]

    got = gradients(torch.float32, "cuda", "cuda")
    plain = gradients(torch.float32, "cpu", "reference")
    exact = gradients(torch.float64, "cpu", "reference")
    for mine, eager, true in zip(got, plain, exact, strict=True):
        assert_within_budget(mine.cpu(), eager, true)
    again = gradients(torch.float32, "cuda", "cuda")
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_every_op_replays_in_a_graph() -> None:
    grid = GRIDS["frames_of_196"]
    tokens, frames = (token_scores(n, "normal") for n in (grid.num_tokens, grid.num_frames))
    rows = torch.randn(grid.num_tokens, 24)
    masks = [torch.rand(9, n) < 0.2 for n in (grid.num_tokens, grid.num_frames)]
    inputs = [t.cuda() for t in (tokens, frames, rows, *masks)]

    def work(tokens: Tensor, frames: Tensor, rows: Tensor, *masks: Tensor) -> list[Tensor]:
        rewards = tokens[:9]
        return [
            *ops.select_and_gather(tokens, frames, rows, grid, 0.1),
            ops.ocss_sample(tokens, grid, 0.1, 4, seed=3),
            ops.frame_sample(frames, grid, 0.1, 4, seed=3),
            ops.farthest_point(rows, 20),
            ops.density_peaks(rows[:300], 20),
            *ops.cpo_loss(tokens, frames, tokens, frames, *masks, rewards, rewards),
        ]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work(*inputs)
    for static in inputs[:3]:
        static.copy_(static.flip(0))
    graph.replay()
    for mine, plain in zip(captured, work(*inputs), strict=True):
        assert torch.equal(mine, plain)


def test_the_gradient_reaches_the_kept_rows() -> None:
    grid = GRIDS["ragged"]
    rows = torch.randn(grid.num_tokens, 6, device="cuda", requires_grad=True)
    scores = token_scores(grid.num_tokens, "normal").cuda()
    keep, kept = ops.select_and_gather(scores, None, rows, grid, 0.2, backend="cuda")
    (gradient,) = torch.autograd.grad(kept.sum(), rows)
    wanted = torch.zeros(grid.num_tokens, device="cuda").index_fill(0, keep, 1.0)
    assert torch.equal(gradient, wanted[:, None].expand_as(gradient))


def test_nothing_waits_for_the_device() -> None:
    grid = GRIDS["frames_of_196"]
    scores = token_scores(grid.num_tokens, "normal").cuda()
    frames, rows = scores[: grid.num_frames].clone(), torch.randn(grid.num_tokens, 64).cuda()
    places = torch.arange(grid.num_tokens + 8, device="cuda")
    embeds = torch.randn(len(places), 64, device="cuda")
    prompt = Prompt(embeds, places, places[4:-4], places[-3:], grid)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        keep = ops.select_tokens(scores, frames, grid, 0.1, backend="cuda")
        ops.gather(rows, keep, backend="cuda")
        ops.select_and_gather(scores, frames, rows, grid, 0.1, backend="cuda")
        ops.frame_sample(frames, grid, 0.1, 8, seed=1, backend="cuda")
        ops.farthest_point(rows, 10, backend="cuda")
        ops.density_peaks(rows[:100], 10, backend="cuda")
        masks = scores[:800].view(4, -1) > 0, frames.expand(4, -1) > 0
        few = scores[:200].clone(), frames, scores[:200].clone(), frames
        ops.cpo_loss(*few, *masks, scores[:4], scores[4:8], backend="cuda")
        ops.ocss_sample(scores, grid, 0.1, 8, seed=1, backend="cuda")
        ops.bernoulli_sample(scores, 8, seed=1, backend="cuda")
        ops.pack_rollouts(prompt, keep.view(1, -1))
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
x = torch.zeros(8, device="cuda")
x[5] = float("nan")
{call}
torch.cuda.synchronize()
"""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("ops.select_tokens(x, None, [(2, 2, 2)], 0.5)", "token_scores has nan at 5"),
        ("ops.ocss_sample(x, [(2, 2, 2)], 0.5, 2, seed=1)", "token_scores has nan at 5"),
        ("ops.frame_sample(x, [(8, 1, 1)], 0.5, 2, seed=1)", "frame_scores has nan at 5"),
        ("ops.farthest_point(x.view(4, 2), 2)", "rows have nan or infinite values"),
        ("ops.density_peaks(x.view(4, 2), 2)", "rows have nan or infinite values"),
    ],
)
def test_nan_stops_the_device(call: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BROKEN.format(call=call)],
        capture_output=True,
        text=True,
        cwd=Path(backends.__file__).parents[1],
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert message in (done.stdout + done.stderr).lower()
