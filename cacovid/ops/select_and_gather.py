"""Selection, the rows of the kept tokens and their positions in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.ops.select_tokens import _FIELDS, flat_plan
from cacovid.ops.select_tokens import _reference as select_reference
from cacovid.reference.gather import check_gather
from cacovid.reference.gather import gather as gather_reference
from cacovid.reference.select_and_gather import check_positions, check_rows
from cacovid.reference.select_and_gather import select_and_gather as select_and_gather_reference
from cacovid.reference.select_tokens import select_plan
from cacovid.types import Grid, PerVideo


@overload
def select_and_gather(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    position_ids: None = None,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def select_and_gather(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    position_ids: Tensor,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...


def select_and_gather(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    position_ids: Tensor | None = None,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """`select_tokens`, then `gather` of the kept tokens' rows; on a GPU in one launch.

    One launch serves up to 32 videos whose frame scores and frames fit into shared memory together
    (4,096 frames of 2,304 tokens do); larger ones take two. Nothing waits for the device.

    Args:
        token_scores: `[N]` float, no NaN; used in float32. Higher is kept first.
        frame_scores: `[F]` float, finite; None counts all frames as equal.
        rows: `[N, D]` floating point or int64, one row for each video token.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        retention: `r` in (0, 1], one number or one per video.
        position_ids: `[N]` or `[A, N]` int64, original positions of the tokens (`A` axes: 3 for
            rotary embeddings over time, height and width); None leaves them out.
        policy_share: Share of the budget that the scores choose.
        max_frame_ratio: Bounds a frame's share; `1.5*r` by default.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `keep` `[K]` int64 and the rows `[K, D]`; the gradient flows to `rows`. With positions,
        those of the kept tokens as a third, `[K]` or `[A, K]` int64.

    Raises:
        InvalidInputError: as `select_tokens` and `gather` do, and for rows or positions that are
            not the tokens'.

    >>> import torch
    >>> keep, kept, positions = select_and_gather(
    ...     torch.tensor([0.0, 2.0, 1.0]), None, torch.eye(3), [(1, 1, 3)], 0.4,
    ...     position_ids=torch.tensor([7, 8, 9]),
    ... )
    >>> keep.tolist(), kept.argmax(1).tolist(), positions.tolist()
    ([0], [0], [7])
    """
    grid = Grid.of(grid)
    check_rows(rows, grid)
    if position_ids is not None:
        check_positions(position_ids, rows, grid)
    token_scores = _arguments.scores(token_scores, grid.num_tokens, "token_scores")
    _arguments.same_device(token_scores, rows, "token_scores", "rows")
    if frame_scores is not None:
        frame_scores = _arguments.scores(frame_scores, grid.num_frames, "frame_scores")
        _arguments.same_device(token_scores, frame_scores, "token_scores", "frame_scores")
    found: tuple[Tensor, ...]
    if _SPEC.choose(token_scores.device, backend) == "reference":
        settings: dict[str, Any] = {"policy_share": policy_share}
        settings |= {"max_frame_ratio": max_frame_ratio, "position_ids": position_ids}
        return select_and_gather_reference(
            token_scores, frame_scores, rows, grid, retention, **settings
        )
    plan = flat_plan(select_plan(grid, retention, policy_share, max_frame_ratio))
    if rows.requires_grad and torch.is_grad_enabled():
        found = _SelectAndGather.apply(token_scores, frame_scores, rows, position_ids, *plan)
    else:
        found = _registry.call(_OP, token_scores, frame_scores, rows, position_ids, *plan)
    keep, kept, positions = found
    return (keep, kept) if position_ids is None else (keep, kept, positions)


class _SelectAndGather(torch.autograd.Function):
    """Outside the op, where autograd costs less than a registration inside it."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        keep, kept, positions = _registry.call(_OP, *arguments)
        ctx.save_for_backward(keep)
        ctx.length = arguments[2].shape[0]
        ctx.mark_non_differentiable(keep, positions)
        return keep, kept, positions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        zeros = grads[1].new_zeros((ctx.length, grads[1].shape[1]))
        return None, None, zeros.index_add(0, keep, grads[1]), None, None, None


def _reference(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    position_ids: Tensor | None,
    plan: Sequence[int],
    clips: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    keep = select_reference(token_scores, frame_scores, plan, clips)
    check_gather(rows, keep)
    places = keep.new_empty(0) if position_ids is None else position_ids.index_select(-1, keep)
    return keep, gather_reference(rows, keep), places


def _fake(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    position_ids: Tensor | None,
    plan: Sequence[int],
    clips: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    kept = sum(plan[2::_FIELDS])
    shape = (0,) if position_ids is None else (*position_ids.shape[:-1], kept)
    keep = token_scores.new_empty(kept, dtype=torch.int64)
    return keep, rows.new_empty((kept, rows.shape[1])), keep.new_empty(shape)


_SPEC, _OP = _registry.define(
    "select_and_gather",
    "(Tensor token_scores, Tensor? frame_scores, Tensor rows, Tensor? position_ids, int[] plan, "
    "float[] clips) -> (Tensor, Tensor, Tensor)",
    backends=("cuda", "cpu"),
    reference=_reference,
    fake=_fake,
)
