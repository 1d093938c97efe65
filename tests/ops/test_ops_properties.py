"""What every implementation owes its caller: budgets, order, independence, errors, gradients."""

from __future__ import annotations

import pytest
import torch

from cacovid import ops
from cacovid.backends import available
from cacovid.errors import InvalidInputError
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
