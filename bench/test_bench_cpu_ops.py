"""Host time of the compiled CPU ops beside their reference, at 32 frames of 196 tokens.

    python -m pytest bench/test_bench_cpu_ops.py --benchmark-group-by=group

Random data, one call per round; compare within one run on an idle machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cacovid import ops
from cacovid.backends import available
from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.types import Grid

GRID = Grid([(32, 14, 14)])

pytestmark = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(not available()[name].available, reason="not compiled")
        )
        for name in ("cpu", "reference")
    ],
)


@pytest.mark.benchmark(group="score, N = 6272, D = 3584, C = 128, bf16")
def test_score(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=3584)).requires_grad_(False)
    video, fold = torch.randn(GRID.num_tokens, 3584).bfloat16(), policy.fold(torch.randn(40, 3584))
    token, _ = benchmark(ops.score, video, fold, GRID, backend=backend)
    assert token.shape == (GRID.num_tokens,)


@pytest.mark.benchmark(group="select_tokens, N = 6272, r = 0.1")
def test_select_tokens(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    tokens, frames = torch.randn(GRID.num_tokens), torch.randn(GRID.num_frames)
    keep = benchmark(ops.select_tokens, tokens, frames, GRID, 0.1, backend=backend)
    assert keep.shape == (627,)


@pytest.mark.benchmark(group="ocss_sample, T = 32, n = 196, r = 0.02, G = 32")
def test_ocss_sample(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(GRID.num_tokens)
    drawn = benchmark(ops.ocss_sample, tokens, GRID, 0.02, 32, seed=1, backend=backend)
    assert drawn.shape == (32, 32 * 4)


@pytest.mark.benchmark(group="gather, 627 of 6272 rows of 3584 bf16")
def test_gather(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    rows = torch.randn(GRID.num_tokens, 3584).bfloat16()
    keep = torch.randperm(GRID.num_tokens)[:627].sort().values
    kept = benchmark(ops.gather, rows, keep, backend=backend)
    assert kept.shape == (627, 3584)


@pytest.mark.benchmark(group="select_and_gather, 627 of 6272 rows of 3584 bf16, positions")
def test_select_and_gather(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    tokens, frames = torch.randn(GRID.num_tokens), torch.randn(GRID.num_frames)
    rows, positions = torch.randn(GRID.num_tokens, 3584).bfloat16(), torch.arange(GRID.num_tokens)
    keep, *_ = benchmark(
        ops.select_and_gather,
        tokens,
        frames,
        rows,
        GRID,
        0.1,
        position_ids=positions,
        backend=backend,
    )
    assert keep.shape == (627,)


@pytest.mark.benchmark(group="farthest_point, 100 of 1000 rows of 896")
def test_farthest_point(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    keep = benchmark(ops.farthest_point, torch.randn(1000, 896), 100, backend=backend)
    assert keep.shape == (100,)


@pytest.mark.benchmark(group="density_peaks, 64 of 392 rows of 896")
def test_density_peaks(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    keep = benchmark(ops.density_peaks, torch.randn(392, 896), 64, backend=backend)
    assert keep.shape == (64,)


@pytest.mark.benchmark(group="frame_sample, T = 32, G = 8")
def test_frame_sample(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    frames = torch.randn(GRID.num_frames)
    drawn = benchmark(ops.frame_sample, frames, GRID, 0.02, 8, seed=1, backend=backend)
    assert drawn.shape == (8, GRID.num_frames)


@pytest.mark.benchmark(group="bernoulli_sample, N = 6272, G = 16")
def test_bernoulli_sample(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(GRID.num_tokens)
    masks = benchmark(ops.bernoulli_sample, logits, 16, seed=1, backend=backend)
    assert masks.shape == (16, GRID.num_tokens)


@pytest.mark.benchmark(group="cpo_loss with its gradient, N = 6272, G = 115")
def test_cpo_loss(benchmark: Any, backend: str) -> None:
    torch.manual_seed(0)
    tokens, frames = (torch.randn(count) for count in (GRID.num_tokens, GRID.num_frames))
    masks = torch.rand(115, GRID.num_tokens) < 0.02, torch.rand(40, GRID.num_frames) < 0.2
    rewards = torch.rand(115), torch.rand(40)

    def step() -> Any:
        leaves = [(t + 0.01).requires_grad_() for t in (tokens, frames)]
        loss = ops.cpo_loss(*leaves, tokens, frames, *masks, *rewards, backend=backend)
        return torch.autograd.grad(loss.total, leaves)

    assert benchmark(step)[0].shape == (GRID.num_tokens,)
