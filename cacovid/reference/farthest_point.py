"""Farthest-point selection with a running minimum: `k` passes over the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.reference._checks import rows_and_count


def farthest_point(rows: Tensor, k: int) -> Tensor:
    """`k` rows, each in turn the farthest from those taken before.

    The first is the row farthest from the mean. Distances are Euclidean, in float64, so that
    backends agree; ties go to the lowest index. Scale the rows to length 1 first for the order of
    cosine distances.

    Args:
        rows: `[M, D]` float, finite; used in float64.
        k: Rows to keep, between 1 and `M`.

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, values that are not finite, or `k` out of range.
    """
    x = rows_and_count(rows, k).double()
    # The number of rows times as far from their sum as from their mean: no quotient, so sums of
    # integers stay exact, and two rows are equally far.
    away = (len(x) * x - x.sum(dim=0)).square().sum(dim=1)
    nearest = torch.full_like(away, torch.inf)
    taken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    chosen = away.argmax()
    for _ in range(k):
        taken[chosen] = True
        nearest = torch.minimum(nearest, (x - x[chosen]).square().sum(dim=1))
        # A taken row never counts again, also where all that is left are its copies.
        chosen = nearest.masked_fill(taken, -1.0).argmax()
    return torch.nonzero(taken).flatten()
