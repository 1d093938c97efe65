"""Selection and the rows of the kept tokens in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from cacovid.ops import _registry
from cacovid.ops.gather import gather
from cacovid.ops.select_tokens import select_tokens
from cacovid.reference.select_and_gather import check_rows
from cacovid.types import Grid, PerVideo

_SPEC = _registry.composed("select_and_gather", ("select_tokens", "gather"))


def select_and_gather(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    rows: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`select_tokens`, then `gather` of the kept tokens' rows.

    Args:
        token_scores: `[N]` float, no NaN; used in float32. Higher is kept first.
        frame_scores: `[F]` float, finite; None counts all frames as equal.
        rows: `[N, D]` floating point or int64, one row for each video token.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        retention: `r` in (0, 1], one number or one per video.
        policy_share: Share of the budget that the scores choose.
        max_frame_ratio: Bounds a frame's share; `1.5*r` by default.
        backend: Forces an implementation (see `cacovid.backends`).

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
        backend=backend,
    )
    return keep, gather(rows, keep, backend=backend)
