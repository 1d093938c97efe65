"""Selection and the rows of the kept tokens in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference.gather import gather
from cacovid.reference.select_tokens import select_tokens
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
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """`select_tokens`, then `gather` of the kept tokens' rows; as deterministic as they are.

    Args:
        token_scores: `[N]` float, no NaN; used in float32. Higher is kept first.
        frame_scores: `[F]` float, finite; None counts all frames as equal.
        rows: `[N, D]` floating point or int64, one row for each video token.
        grid: The packed videos.
        retention: `r` in (0, 1], one number or one per video.
        position_ids: `[N]` or `[A, N]` int64, original positions of the tokens (`A` axes: 3 for
            rotary embeddings over time, height and width); None leaves them out.
        policy_share: Share of the budget that the scores choose.
        max_frame_ratio: Bounds a frame's share; `1.5*r` by default.

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
    keep = select_tokens(
        token_scores,
        frame_scores,
        grid,
        retention,
        policy_share=policy_share,
        max_frame_ratio=max_frame_ratio,
    )
    if position_ids is None:
        return keep, gather(rows, keep)
    return keep, gather(rows, keep), position_ids.index_select(-1, keep)


def check_rows(rows: Tensor, grid: Grid) -> None:
    """Raises:
    InvalidInputError: unless there is one row for each video token.
    """
    if rows.dim() != 2 or rows.shape[0] != grid.num_tokens:
        raise InvalidInputError(
            f"rows has shape {tuple(rows.shape)}; expected one row for each of the "
            f"{grid.num_tokens} video tokens"
        )


def check_positions(position_ids: Tensor, rows: Tensor, grid: Grid) -> None:
    """Raises:
    InvalidInputError: unless they are int64 `[N]` or `[A, N]` beside the rows.
    """
    n = grid.num_tokens
    if position_ids.dim() not in (1, 2) or position_ids.shape[-1] != n:
        raise InvalidInputError(
            f"position_ids has shape {tuple(position_ids.shape)}; expected [{n}] or [A, {n}], one "
            f"position for each video token"
        )
    if position_ids.dtype != torch.int64:
        raise InvalidInputError(
            f"position_ids is {position_ids.dtype}; expected torch.int64: convert it with .long()"
        )
    if position_ids.device != rows.device:
        raise InvalidInputError(
            f"position_ids is on {position_ids.device} and rows on {rows.device}; move them to one "
            f"device"
        )
