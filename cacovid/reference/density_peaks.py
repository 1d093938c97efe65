"""Tokens of a drawn frame by density peaks, ALGORITHMS 1.3 (CaCoVID, arXiv 2602.01649)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.reference._checks import at_least_one, rows_and_count


def density_peaks(rows: Tensor, k: int, neighbours: int = 4) -> Tensor:
    """The `k` rows that are dense and far from denser ones.

    `d_ij = |x_i - x_j| / sqrt(D)`; `rho_i = exp(-mean of the smallest min(neighbours, M) d_ij^2)`,
    the row itself counted; `delta_i` is the smallest distance to a denser row, the largest
    distance of all where none is denser. The largest `rho * delta` are kept, ties to the lowest
    index. In float64, so that backends agree; densities are compared by their exponents, which
    neither vanish nor round.

    Args:
        rows: `[M, D]` float, finite; used in float64.
        k: Rows to keep, between 1 and `M`.
        neighbours: Distances that make the density, at least 1.

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, values that are not finite, or `k` or `neighbours`
            out of range.
    """
    at_least_one(neighbours, "neighbours")
    x = rows_and_count(rows, k).double()
    difference = torch.empty_like(x)
    squared = torch.stack([torch.sub(x, row, out=difference).square_().sum(dim=1) for row in x])
    near = min(neighbours, len(x))
    spread = squared.sort(dim=1).values[:, :near].cumsum(dim=1)[:, -1]  # added in ascending order
    denser = spread[None, :] < spread[:, None]
    nearest_denser = squared.masked_fill(~denser, torch.inf).amin(dim=1)
    nearest = torch.where(denser.any(dim=1), nearest_denser, squared.max())
    density = (-spread / (near * x.shape[1])).exp()
    separation = (nearest / x.shape[1]).sqrt()
    order = (density * separation).argsort(descending=True, stable=True)
    return order[:k].sort().values
