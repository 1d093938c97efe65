"""The compiled ops give the reference's integers, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import ops
from cacovid.backends import available
from cacovid.errors import InvalidInputError
from cacovid.testing import Case, cases_of
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid

_CPU = available()["cpu"]
pytestmark = pytest.mark.skipif(not _CPU.available, reason=_CPU.reason)

EXACT = (
    "select_tokens",
    "ocss_sample",
    "gather",
    "density_peaks",
    "farthest_point",
    "frame_sample",
    "bernoulli_sample",
)


def _both(case: Case) -> tuple[Tensor, Tensor]:
    positional, named = case.make()
    function = getattr(ops, case.op)
    return (
        function(*positional, **named, backend="cpu"),
        function(*positional, **named, backend="reference"),
    )


@pytest.mark.parametrize(
    "case",
    [case for op in EXACT for case in cases_of(op)],
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


@pytest.mark.parametrize("seed", range(40))
def test_random_frames_equal_reference(seed: int) -> None:
    rng = random.Random(seed)
    grid = Grid((rng.choice((1, 2, 9, 32, 63, 400)), 1, 1) for _ in range(rng.randint(1, 3)))
    scores = token_scores(grid.num_frames, rng.choice(("normal", "ties", "peaked", "huge")), seed)
    rollouts = rng.choice((1, 2, 9))
    named: dict[str, Any] = {
        "frame_cap": "row",
        "seed": rng.getrandbits(64),
        "offset": rng.choice((0, 7, 2**32 - 1, rng.getrandbits(40))),
    }
    if seed % 3 == 0:  # the published cap holds for few frames only
        grid, named["frame_cap"], rollouts = Grid([(9, 1, 1), (1, 2, 2)]), "published", 9
        scores = scores.repeat(10)[:10]
    compiled = ops.frame_sample(scores, grid, 0.1, rollouts, **named, backend="cpu")
    expected = ops.frame_sample(scores, grid, 0.1, rollouts, **named, backend="reference")
    assert compiled.dtype == torch.bool and torch.equal(compiled, expected)


@pytest.mark.parametrize("seed", range(40))
def test_random_coins_equal_reference(seed: int) -> None:
    rng = random.Random(seed)
    grid = _random_grid(rng)
    kind = rng.choice(("normal", "ties", "peaked", "huge", "tiny"))
    logits = token_scores(grid.num_tokens, kind, seed) * rng.choice((1.0, 0.1, 8.0))
    logits = logits.clamp(-3e38, 3e38)
    named: dict[str, Any] = {
        "grid": rng.choice((grid, None)),
        "seed": rng.getrandbits(64),
        "offset": rng.choice((0, 7, 2**32 - 1, rng.getrandbits(40))),
    }
    rollouts = rng.choice((1, 2, 9, 40))
    compiled = ops.bernoulli_sample(logits, rollouts, **named, backend="cpu")
    expected = ops.bernoulli_sample(logits, rollouts, **named, backend="reference")
    assert compiled.dtype == torch.bool and torch.equal(compiled, expected)


def _random_rows(kind: str, count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    if kind == "integers":
        return rows.round()
    if kind == "bfloat16":
        return rows.bfloat16()
    if kind == "copies":
        return rows[torch.randint(0, count, (count,), generator=generator)]
    scale, shift = {"normal": (1, 0), "far": (1e-3, 100), "huge": (1e25, 0), "tiny": (1e-30, 0)}[
        kind
    ]
    return rows * scale + shift


@pytest.mark.parametrize("op", ["farthest_point", "density_peaks"])
@pytest.mark.parametrize(
    "kind", ["normal", "integers", "bfloat16", "copies", "far", "huge", "tiny"]
)
def test_random_rows_equal_reference(op: str, kind: str) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        count, width = rng.choice((1, 2, 7, 64, 130, 300)), rng.choice((1, 3, 8, 17, 64, 100))
        rows, k = _random_rows(kind, count, width, seed), rng.randint(1, count)
        function = getattr(ops, op)
        expected = function(rows, k, backend="reference")
        assert torch.equal(function(rows, k, backend="cpu"), expected), (seed, count, width, k)


@pytest.mark.parametrize("scale", [30.0, 50.0, 1e3, 1e9, 1e15])
@pytest.mark.parametrize("neighbours", [2, 4])
def test_density_peaks_of_rows_far_apart_equal_reference(scale: float, neighbours: int) -> None:
    rows = _random_rows("normal", 54, 16, 5) * scale
    kept = ops.density_peaks(rows, 5, neighbours, backend="cpu")
    assert torch.equal(kept, ops.density_peaks(rows, 5, neighbours, backend="reference"))
    assert kept.tolist() != [0, 1, 2, 3, 4]  # as products that all vanish would choose


@pytest.mark.parametrize("kind", ["normal", "clusters", "copies", "far"])
def test_farthest_points_of_many_rows_equal_reference(kind: str) -> None:
    # More rows than a thread scans at a time; most are never measured from most chosen rows.
    count, width, k = 5000, 24, 400
    if kind == "clusters":
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(60, width, generator=generator)
        nearest = torch.randint(60, (count,), generator=generator)
        rows = centres[nearest] + 1e-3 * torch.randn(count, width, generator=generator)
    else:
        rows = _random_rows(kind, count, width, 3)
    expected = ops.farthest_point(rows, k, backend="reference")
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ops.farthest_point(rows, k, backend="cpu"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("op", ["farthest_point", "density_peaks"])
def test_rows_that_cannot_be_chosen_from(op: str) -> None:
    function = getattr(ops, op)
    for rows, k, message in (
        (torch.ones(3, 2), 4, "k is 4; expected 1 to 3"),
        (torch.full((3, 2), torch.inf), 1, "NaN or infinite"),
        (torch.tensor([[0.0], [torch.nan]]), 2, "NaN or infinite"),
        (torch.ones(3), 1, r"expected \[M, D\]"),
        (torch.ones(3, 2).long(), 1, "floating point"),
        (torch.ones(3, 2).double(), 1, "takes rows up to float32"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            function(rows, k, backend="cpu")
    assert function(torch.ones(3, 2).double(), 2).tolist() == [0, 1]
    with pytest.raises(ValueError, match="must be float32"):
        getattr(torch.ops.cacovid, op)(torch.ones(3, 2).long(), 2, *((4,) * (op[0] == "d")))


def test_density_peaks_needs_a_neighbour() -> None:
    for backend in ("cpu", "reference"):
        with pytest.raises(InvalidInputError, match="neighbours is 0"):
            ops.density_peaks(torch.ones(3, 2), 1, 0, backend=backend)


def test_thread_count_changes_nothing() -> None:
    grid = GRIDS["ragged"]
    scores, frames = token_scores(grid.num_tokens, "ties"), token_scores(grid.num_frames, "normal")
    rows = torch.randn(grid.num_tokens, 513)
    few = rows[:150]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            keep = ops.select_tokens(scores, frames, grid, 0.6, backend="cpu")
            drawn = ops.ocss_sample(scores, grid, 0.1, 8, seed=1, backend="cpu")
            coins = ops.bernoulli_sample(scores.repeat(40), 9, seed=1, backend="cpu")
            far = ops.farthest_point(few, 40, backend="cpu")
            dense = ops.density_peaks(few, 40, backend="cpu")
            rest = ops.gather(rows, keep, backend="cpu")
            results.append((keep, drawn, coins, rest, far, dense))
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
        coins = ops.bernoulli_sample(scores, 3, seed=1, backend=backend)
        assert torch.equal(coins, ops.bernoulli_sample(scores.clone(), 3, seed=1))
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
    coins = ops.bernoulli_sample(scores, 4, seed=5)
    assert torch.equal(coins, ops.bernoulli_sample(scores.float(), 4, seed=5))


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
    with pytest.raises(ValueError, match="contradicts itself"):
        torch.ops.cacovid.frame_sample(scores, [4, 5, 1, 1], 2, 0, 0)
    with pytest.raises(ValueError, match="expected 4"):
        torch.ops.cacovid.frame_sample(scores, [4, 1, 1], 2, 0, 0)
    for counts, rollouts, message in (
        ([4, 0], 2, "a video has 0 tokens"),
        ([3], 2, r"grid asks for \[3\]"),
        ([], 2, "no video"),
        ([4], 0, "rollouts is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.cacovid.bernoulli_sample(scores, counts, rollouts, 0, 0)
    with pytest.raises(ValueError, match="token masks are not bool"):
        torch.ops.cacovid.cpo_loss(
            *[scores] * 4, *[torch.ones(2, 4)] * 2, *[torch.zeros(2)] * 2, 0.2, 0.28, 0.0
        )
