"""Tokens of a drawn frame by density peaks, ALGORITHMS 1.3 (CaCoVID, arXiv 2602.01649)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.reference._checks import rows_and_count


def density_peaks(rows: Tensor, k: int, neighbours: int = 4) -> Tensor:
    """The `k` rows that are dense and far from denser ones.

    `d_ij = |x_i - x_j| / sqrt(D)`; `rho_i = exp(-mean of the smallest min(neighbours, M) d_ij^2)`,
    the row itself counted; `delta_i` is the smallest distance to a denser row, the largest
    distance of all where none is denser. The largest `rho * delta` are kept, ties to the lowest
    index.

    Args:
        rows: `[M, D]` float, finite; used in at least float32.
        k: Rows to keep, between 1 and `M`.
        neighbours: Distances that make the density.

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, values that are not finite, or `k` out of range.
    """
    x = rows_and_count(rows, k)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    nearest = distance.topk(min(neighbours, len(x)), dim=1, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    denser = density[None, :] > density[:, None]
    nearest_denser = distance.masked_fill(~denser, torch.inf).amin(dim=1)
    separation = torch.where(denser.any(dim=1), nearest_denser, distance.max())
    order = (density * separation).argsort(descending=True, stable=True)
    return order[:k].sort().values
