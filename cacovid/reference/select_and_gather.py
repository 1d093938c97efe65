"""Selection and the rows of the kept tokens in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference.gather import gather
from cacovid.reference.select_tokens import select_tokens
from cacovid.types import Grid, PerVideo


def select_and_gather(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
) -> tuple[Tensor, Tensor]:
    """`select_tokens`, then `gather` of the kept tokens' rows; as deterministic as they are.

    Args:
        token_scores: `[N]` float, no NaN; used in float32. Higher is kept first.
        frame_scores: `[F]` float, finite; None counts all frames as equal.
        rows: `[N, D]` floating point or int64, one row for each video token.
        grid: The packed videos.
        retention: `r` in (0, 1], one number or one per video.
        policy_share: Share of the budget that the scores choose.
        max_frame_ratio: Bounds a frame's share; `1.5*r` by default.

    Returns:
        `keep` `[K]` int64 and the rows `[K, D]`; the gradient flows to `rows`.

    Raises:
        InvalidInputError: as `select_tokens` and `gather` do, and for rows that are not the
            tokens'.

    >>> import torch
    >>> keep, kept = select_and_gather(
    ...     torch.tensor([0.0, 2.0, 1.0]), None, torch.eye(3), [(1, 1, 3)], 0.4
    ... )
    >>> keep.tolist(), kept.argmax(1).tolist()
    ([0], [0])
    """
    grid = Grid.of(grid)
    check_rows(rows, grid)
    keep = select_tokens(
        token_scores,
        frame_scores,
        grid,
        retention,
        policy_share=policy_share,
        max_frame_ratio=max_frame_ratio,
    )
    return keep, gather(rows, keep)


def check_rows(rows: Tensor, grid: Grid) -> None:
    """Raises:
    InvalidInputError: unless there is one row for each video token.
    """
    if rows.dim() != 2 or rows.shape[0] != grid.num_tokens:
        raise InvalidInputError(
            f"rows has shape {tuple(rows.shape)}; expected one row for each of the "
            f"{grid.num_tokens} video tokens"
        )
