"""The compiled ops give the reference's integers, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import ops
from cacovid.backends import available
from cacovid.testing import Case, cases_of
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid

_CPU = available()["cpu"]
pytestmark = pytest.mark.skipif(not _CPU.available, reason=_CPU.reason)


def _both(case: Case) -> tuple[Tensor, Tensor]:
    positional, named = case.make()
    function = getattr(ops, case.op)
    return (
        function(*positional, **named, backend="cpu"),
        function(*positional, **named, backend="reference"),
    )


@pytest.mark.parametrize(
    "case",
    [case for op in ("select_tokens", "ocss_sample", "gather") for case in cases_of(op)],
    ids=lambda case: case.id,
)
def test_compiled_equals_reference(case: Case) -> None:
    compiled, reference = _both(case)
    assert compiled.dtype == reference.dtype and compiled.shape == reference.shape
    assert compiled.is_contiguous()
    assert torch.equal(compiled, reference)


def _random_grid(rng: random.Random) -> Grid:
    return Grid(
        (rng.randint(1, 24), rng.randint(1, 12), rng.randint(1, 12))
        for _ in range(rng.randint(1, 3))
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_selections_equal_reference(seed: int) -> None:
    rng = random.Random(seed)
    grid = _random_grid(rng)
    kinds = ("normal", "ties", "peaked", "flat", "huge")
    arguments: tuple[Any, ...] = (
        token_scores(grid.num_tokens, rng.choice(kinds), seed),
        token_scores(grid.num_frames, rng.choice(kinds), seed + 1),
        grid,
        [rng.choice((1.0, 0.01, 0.1, rng.uniform(0.005, 1.0))) for _ in grid.sizes],
    )
    named: dict[str, Any] = {
        "policy_share": rng.choice((0.0, 0.5, 1.0, rng.random())),
        "max_frame_ratio": rng.choice((None, 0.01, 0.3, 5.0)),
    }
    compiled = ops.select_tokens(*arguments, **named, backend="cpu")
    assert torch.equal(compiled, ops.select_tokens(*arguments, **named, backend="reference"))


@pytest.mark.parametrize("seed", range(60))
def test_random_rollouts_equal_reference(seed: int) -> None:
    rng = random.Random(seed)
    grid = _random_grid(rng)
    scores = token_scores(grid.num_tokens, rng.choice(("normal", "ties", "peaked")), seed)
    ratio = [rng.choice((1.0, 0.02, 0.1, rng.uniform(0.005, 1.0))) for _ in grid.sizes]
    named: dict[str, Any] = {
        "subspace_factor": rng.choice((2.0, 0.5, 1.0, 5.0)),
        "max_subspace_prob": rng.choice((None, 0.05, 0.5, 1.0)),
        "seed": rng.getrandbits(64),
        "offset": rng.choice((0, 7, 2**32 - 1, rng.getrandbits(40))),
    }
    rollouts = rng.choice((1, 2, 9))
    compiled = ops.ocss_sample(scores, grid, ratio, rollouts, **named, backend="cpu")
    expected = ops.ocss_sample(scores, grid, ratio, rollouts, **named, backend="reference")
    assert torch.equal(compiled, expected)


def test_thread_count_changes_nothing() -> None:
    grid = GRIDS["ragged"]
    scores, frames = token_scores(grid.num_tokens, "ties"), token_scores(grid.num_frames, "normal")
    rows = torch.randn(grid.num_tokens, 513)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            keep = ops.select_tokens(scores, frames, grid, 0.6, backend="cpu")
            drawn = ops.ocss_sample(scores, grid, 0.1, 8, seed=1, backend="cpu")
            results.append((keep, drawn, ops.gather(rows, keep, backend="cpu")))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_inputs_are_read_right() -> None:
    grid = GRIDS["frames_of_63"]
    wide = torch.randn(grid.num_tokens, 6)
    scores, rows = wide[:, 2], wide[:, 1:4]
    assert not scores.is_contiguous() and not rows.is_contiguous()
    for backend in ("cpu", "reference"):
        keep = ops.select_tokens(scores, None, grid, 0.3, backend=backend)
        assert torch.equal(keep, ops.select_tokens(scores.clone(), None, grid, 0.3))
        drawn = ops.ocss_sample(scores, grid, 0.3, 3, seed=1, backend=backend)
        assert torch.equal(drawn, ops.ocss_sample(scores.clone(), grid, 0.3, 3, seed=1))
        assert torch.equal(ops.gather(rows, keep, backend=backend), rows[keep])
        backwards = keep.repeat_interleave(2)[::2]
        assert torch.equal(ops.gather(rows, backwards, backend=backend), rows[backwards])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_other_dtypes_are_used_in_float32(dtype: torch.dtype) -> None:
    grid = GRIDS["frames_of_63"]
    scores = token_scores(grid.num_tokens, "normal").to(dtype)
    keep = ops.select_tokens(scores, None, grid, 0.2)
    assert torch.equal(keep, ops.select_tokens(scores.float(), None, grid, 0.2))
    drawn = ops.ocss_sample(scores, grid, 0.2, 4, seed=5)
    assert torch.equal(drawn, ops.ocss_sample(scores.float(), grid, 0.2, 4, seed=5))


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    scores = torch.zeros(4)
    with pytest.raises(ValueError, match="contradicts itself"):
        torch.ops.cacovid.select_tokens(scores, None, [1, 4, 9, 2, 2, 2], [1.5])
    with pytest.raises(ValueError, match="expected 6"):
        torch.ops.cacovid.select_tokens(scores, None, [1, 4], [1.5])
    with pytest.raises(ValueError, match="contradicts itself"):
        torch.ops.cacovid.ocss_sample(scores, [1, 4, 2, 5, 1], 2, 0, 0)
    with pytest.raises(ValueError, match="expected 5"):
        torch.ops.cacovid.ocss_sample(scores, [1, 4, 2], 2, 0, 0)
