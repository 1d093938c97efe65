"""What every implementation owes its caller: budgets, order, independence, errors, gradients."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid import ops
from cacovid.backends import available
from cacovid.errors import InvalidInputError
from cacovid.reference import fixed_point
from cacovid.reference.ocss import OcssPlan, ocss_plan
from cacovid.reference.select_tokens import frame_quotas, select_plan
from cacovid.testing import Case, cases_of
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid

BACKENDS = [name for name in ("cpu", "reference") if available()[name].available]


@pytest.mark.parametrize("case", cases_of("select_tokens"), ids=lambda case: case.id)
def test_selection_meets_the_budget_in_order(case: Case) -> None:
    positional, named = case.make()
    grid, retention = positional[2], positional[3]
    keep = ops.select_tokens(*positional, **named)
    assert (keep.diff() > 0).all()
    bounds = torch.tensor(grid.host_video_offsets)
    counts = torch.searchsorted(keep, bounds).diff().tolist()
    assert tuple(counts) == grid.budgets(retention)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_video_alone_equals_itself_in_a_pack(backend: str) -> None:
    grid = GRIDS["ragged"]
    scores, frames = token_scores(grid.num_tokens, "ties"), token_scores(grid.num_frames, "normal")
    together = ops.select_tokens(scores, frames, grid, 0.3, backend=backend)
    drawn = ops.ocss_sample(scores, grid, 0.2, 5, seed=9, offset=4, backend=backend)
    kept, columns = 0, 0
    for i in range(grid.num_videos):
        begin, end = grid.host_video_offsets[i : i + 2]
        first, last = grid.host_video_frame_offsets[i : i + 2]
        part = scores[begin:end]
        alone = ops.select_tokens(part, frames[first:last], grid.video(i), 0.3, backend=backend)
        assert torch.equal(together[kept : kept + alone.numel()] - begin, alone)
        kept += alone.numel()
        mask = ops.ocss_sample(part, grid.video(i), 0.2, 5, seed=9, offset=4 + i, backend=backend)
        assert torch.equal(drawn[:, columns : columns + mask.shape[1]] - begin, mask)
        columns += mask.shape[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_go_to_the_lowest_index(backend: str) -> None:
    keep = ops.select_tokens(
        torch.zeros(12), None, [(1, 3, 4)], 0.5, policy_share=1.0, backend=backend
    )
    assert keep.tolist() == [0, 1, 2, 3, 4, 5]
    drawn = ops.ocss_sample(torch.zeros(12), [(1, 3, 4)], 0.25, 1, seed=0, backend=backend)
    assert drawn.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_and_offset_move_the_draws_and_repeat(backend: str) -> None:
    grid = GRIDS["frames_of_196"]
    scores = token_scores(grid.num_tokens, "normal")

    def draw(seed: int, offset: int = 0) -> torch.Tensor:
        return ops.ocss_sample(scores, grid, 0.1, 6, seed=seed, offset=offset, backend=backend)

    assert torch.equal(draw(1), draw(1))
    assert torch.equal(draw(1), draw(1 + 2**64))
    assert not torch.equal(draw(1)[1:], draw(2)[1:])
    assert not torch.equal(draw(1)[1:], draw(1, offset=1)[1:])
    assert torch.equal(draw(1)[0], draw(2)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_values_are_refused(backend: str) -> None:
    grid = Grid([(2, 2, 2)])
    nan, infinite = torch.zeros(8), torch.zeros(8)
    nan[5], infinite[3] = torch.nan, torch.inf
    with pytest.raises(InvalidInputError, match=r"token_scores has NaN \(first at 5\)"):
        ops.select_tokens(nan, None, grid, 0.5, backend=backend)
    with pytest.raises(InvalidInputError, match="frame_scores has NaN or infinite"):
        ops.select_tokens(torch.zeros(8), torch.tensor([0.0, -torch.inf]), grid, 0.5)
    for scores in (nan, infinite):
        with pytest.raises(InvalidInputError, match="token_scores has NaN or infinite"):
            ops.ocss_sample(scores, grid, 0.5, 2, seed=0, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_shapes_dtypes_and_settings_are_refused(backend: str) -> None:
    grid, scores = Grid([(2, 2, 2)]), torch.zeros(8)
    with pytest.raises(InvalidInputError, match=r"shape \(7,\); the grid asks for \[8\]"):
        ops.select_tokens(scores[:7], None, grid, 0.5, backend=backend)
    with pytest.raises(InvalidInputError, match="expected floating point"):
        ops.select_tokens(scores.long(), None, grid, 0.5, backend=backend)
    with pytest.raises(InvalidInputError, match=r"frame_scores has shape \(3,\)"):
        ops.select_tokens(scores, torch.zeros(3), grid, 0.5, backend=backend)
    for retention in (0.0, 1.5, [0.5, 0.5]):
        with pytest.raises(InvalidInputError, match="retention"):
            ops.select_tokens(scores, None, grid, retention, backend=backend)
    with pytest.raises(InvalidInputError, match="policy_share"):
        ops.select_tokens(scores, None, grid, 0.5, policy_share=1.5, backend=backend)
    with pytest.raises(InvalidInputError, match="rollouts is 0"):
        ops.ocss_sample(scores, grid, 0.5, 0, seed=0, backend=backend)
    with pytest.raises(InvalidInputError, match="max_subspace_prob"):
        ops.ocss_sample(scores, grid, 0.5, 2, max_subspace_prob=2.0, seed=0, backend=backend)
    rows, keep = torch.zeros(4, 3), torch.tensor([0, 1])
    with pytest.raises(InvalidInputError, match=r"expected \[S, D\]"):
        ops.gather(rows[0], keep, backend=backend)
    with pytest.raises(InvalidInputError, match="expected int64"):
        ops.gather(rows, keep.int(), backend=backend)
    with pytest.raises(InvalidInputError, match="expected floating point or int64"):
        ops.gather(rows.bool(), keep, backend=backend)
    for index in (-1, 4):
        with pytest.raises(InvalidInputError, match=rf"keep\[1\] is {index}"):
            ops.gather(rows, torch.tensor([0, index]), backend=backend)


def test_tensors_of_two_devices_are_refused() -> None:
    meta = torch.zeros(2, device="meta")
    with pytest.raises(InvalidInputError, match="token_scores is on cpu and frame_scores on meta"):
        ops.select_tokens(torch.zeros(8), meta, [(2, 2, 2)], 0.5)
    with pytest.raises(InvalidInputError, match="rows is on cpu and keep on meta"):
        ops.gather(torch.zeros(4, 3), torch.zeros(2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gather_gradient_adds_up_where_rows_repeat(backend: str) -> None:
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([4, 0, 0, 2])
    assert torch.autograd.gradcheck(lambda x: ops.gather(x, keep, backend=backend), (rows,))
    ops.gather(rows, keep, backend=backend).sum().backward()
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == [2.0, 0.0, 1.0, 0.0, 1.0]


# Random packs. The examples are the same in every run (`derandomize`), so that a test fails always
# or never.

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 5))
GRID = st.lists(SIZES, min_size=1, max_size=3).map(Grid)
KIND = st.sampled_from(("normal", "flat", "ties", "peaked", "huge", "tiny"))
RATIO = st.one_of(st.just(1.0), st.floats(0.005, 1.0))
SEED = st.integers(0, 2**64 - 1)
random_packs = settings(max_examples=150, deadline=None, derandomize=True)


def top(scores: torch.Tensor, count: int) -> set[int]:
    """The `count` best, ties to the lowest index, by Python's own sort."""
    values = scores.tolist()
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


@random_packs
@given(grid=GRID, kind=KIND, frame_kind=KIND, r=RATIO, share=st.floats(0, 1), data=st.data())
def test_selection_of_any_pack(
    grid: Grid, kind: str, frame_kind: str, r: float, share: float, data: st.DataObject
) -> None:
    backend = data.draw(st.sampled_from(BACKENDS))
    retention = data.draw(st.lists(RATIO, min_size=grid.num_videos, max_size=grid.num_videos))
    retention[0] = r
    scores = token_scores(grid.num_tokens, kind, seed=2)
    frames = token_scores(grid.num_frames, frame_kind, seed=3)
    keep = ops.select_tokens(
        scores, frames, grid, retention, policy_share=share, backend=backend
    )
    assert keep.dtype == torch.int64 and (keep.diff() > 0).all()
    plans = select_plan(grid, retention, share)
    kept = torch.zeros(grid.num_tokens, dtype=torch.bool).index_fill_(0, keep, True)
    for i, plan in enumerate(plans):
        begin, end = grid.host_video_offsets[i : i + 2]
        first, last = grid.host_video_frame_offsets[i : i + 2]
        mine, z, f = kept[begin:end], scores[begin:end], frames[first:last]
        assert int(mine.sum()) == max(1, math.floor(retention[i] * (end - begin) + 1e-9))
        if retention[i] == 1.0:
            assert mine.all()
        alone = ops.select_tokens(
            z, f, grid.video(i), retention[i], policy_share=share, backend=backend
        )
        assert alone.tolist() == mine.nonzero().flatten().tolist()

        # The frame's best, to the number of its quota, are kept; the others are an even share.
        quotas = frame_quotas(f, plan)
        assert int(quotas.sum()) == plan.budget
        chosen: set[int] = set()
        for frame in range(plan.frames):
            at = frame * plan.tokens
            best = top(z[at : at + plan.tokens], int(quotas[frame]))
            chosen |= {at + j for j in best}
        assert chosen <= set(alone.tolist())
        others = [j for j in range(end - begin) if j not in chosen]
        even = [others.index(j) for j in alone.tolist() if j not in chosen]
        steps = [b - a for a, b in pairwise(even)]
        assert not even or even[0] == 0
        assert len(even) < 2 or (even[-1] == len(others) - 1 and max(steps) - min(steps) <= 1)
        if plan.budget < plan.frames:  # fewer tokens than frames: the best frames are served
            served = {j // plan.tokens for j in chosen}
            assert served == top(f, plan.budget) and len(chosen) == plan.budget


@random_packs
@given(size=SIZES, r=RATIO, backend=st.sampled_from(BACKENDS))
def test_equal_scores_share_evenly_and_take_the_first(
    size: tuple[int, int, int], r: float, backend: str
) -> None:
    t, h, w = size
    keep = ops.select_tokens(
        torch.full((t * h * w,), 0.7), None, [size], r, policy_share=1.0, backend=backend
    )
    rows = [(keep[keep // (h * w) == frame] % (h * w)).tolist() for frame in range(t)]
    assert all(row == list(range(len(row))) for row in rows)
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@random_packs
@given(grid=GRID, r=RATIO, factor=st.sampled_from((0.25, 2.0, 1024.0)))
def test_selection_depends_on_order_and_relative_frame_scores_only(
    grid: Grid, r: float, factor: float
) -> None:
    scores, frames = token_scores(grid.num_tokens, "ties"), token_scores(grid.num_frames, "normal")
    keep = ops.select_tokens(scores, frames, grid, r)
    assert torch.equal(keep, ops.select_tokens(scores * factor, frames * factor, grid, r))


@random_packs
@given(grid=GRID, kind=KIND, r=RATIO, factor=st.floats(0.3, 9.0), seed=SEED, data=st.data())
def test_token_rollouts_of_any_pack(
    grid: Grid, kind: str, r: float, factor: float, seed: int, data: st.DataObject
) -> None:
    backend, rollouts = data.draw(st.sampled_from(BACKENDS)), data.draw(st.integers(1, 6))
    scores = token_scores(grid.num_tokens, kind, seed=4)
    named: dict[str, Any] = {"subspace_factor": factor, "seed": seed, "backend": backend}
    drawn = ops.ocss_sample(scores, grid, r, rollouts, **named)
    each = [max(1, round(r * n)) for n in grid.tokens_per_frame]
    assert drawn.dtype == torch.int32 and drawn.shape == (rollouts, sum(each))
    assert (drawn.diff(dim=1) > 0).all()
    column, frame = 0, 0
    for i, plan in enumerate(ocss_plan(grid, r, factor)):
        begin, end = grid.host_video_offsets[i : i + 2]
        alone = ops.ocss_sample(scores[begin:end], grid.video(i), r, rollouts, offset=i, **named)
        mine = drawn[:, column : column + alone.shape[1]] - begin
        assert torch.equal(alone, mine)
        for local in range(plan.frames):
            k, at = each[frame], local * plan.tokens
            part = mine[:, local * k : (local + 1) * k] - at
            z = scores[begin + at : begin + at + plan.tokens]
            assert set(part[0].tolist()) == top(z, k)
            rank = torch.empty(plan.tokens, dtype=torch.int64)
            rank[fixed_point.rank(z)] = torch.arange(plan.tokens)
            for row in part[1:].tolist():
                assert _is_a_draw(sorted(rank[row].tolist()), plan)
            frame += 1
        column += alone.shape[1]
    if r == 1.0:
        assert torch.equal(drawn, torch.arange(grid.num_tokens).int().expand(rollouts, -1))


def _is_a_draw(ranks: list[int], plan: OcssPlan) -> bool:
    """Whether the ranks lie in one sub-space, or are what a small one is filled up to."""
    for begin, end in pairwise(plan.starts):
        if end - begin >= plan.keep:
            if begin <= ranks[0] and ranks[-1] < end:
                return True
        elif ranks == list(range(start := min(begin, plan.tokens - plan.keep), start + plan.keep)):
            return True
    return False


@random_packs
@given(grid=GRID, kind=KIND, r=RATIO, rollouts=st.integers(1, 9), seed=SEED)
def test_frame_rollouts_of_any_pack(
    grid: Grid, kind: str, r: float, rollouts: int, seed: int
) -> None:
    scores = token_scores(grid.num_frames, kind, seed=5)
    mask = ops.frame_sample(scores, grid, r, rollouts, seed=seed)
    assert mask.dtype == torch.bool and mask.shape == (rollouts, grid.num_frames)
    for i, t in enumerate(grid.frames_per_video):
        first, last = grid.host_video_frame_offsets[i : i + 2]
        mine, z = mask[:, first:last], scores[first:last]
        assert (mine.sum(1) == math.ceil(t / 8)).all()
        assert set(mine[0].nonzero().flatten().tolist()) == top(z, math.ceil(t / 8))
        alone = ops.frame_sample(z, grid.video(i), r, rollouts, seed=seed, offset=i)
        assert torch.equal(alone, mine)
        if t == 1:
            assert mine.all()
