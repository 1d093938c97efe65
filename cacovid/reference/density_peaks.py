"""Tokens of a drawn frame by density peaks, ALGORITHMS 1.3 (CaCoVID, arXiv 2602.01649)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.reference._checks import at_least_one, rows_and_count

_LOG2_OF_E = 1.4426950408889634


def density_peaks(rows: Tensor, k: int, neighbours: int = 4) -> Tensor:
    """The `k` rows that are dense and far from denser ones.

    `d_ij = |x_i - x_j| / sqrt(D)`; `rho_i = exp(-mean of the smallest min(neighbours, M) d_ij^2)`,
    the row itself counted; `delta_i` is the smallest distance to a denser row, the largest
    distance of all where none is denser. The largest `rho * delta` are kept, ties to the lowest
    index. In float64, so that backends agree. Densities are compared by their exponents, which
    neither vanish nor round, and products by a whole exponent of 2 and a mantissa: a density that
    float64 has no number for (a mean squared distance above `745 D`) still ranks its row.

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
    order = torch.arange(len(x), device=x.device)
    for digits in reversed(_product(spread / (near * x.shape[1]), (nearest / x.shape[1]).sqrt())):
        order = order[digits[order].argsort(descending=True, stable=True)]
    return order[:k].sort().values


def _product(mean: Tensor, separation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`exp(-mean) * separation` as numbers to rank by: first, where equal second, and so on.

    The product is `mantissa * 2**(exponent + lost)`; `lost` is what float64 rounds away from
    exponents beyond `2**53`, else 0. A separation of 0 comes last.

    Args:
        mean: `[M]` float64, at least 0.
        separation: `[M]` float64, at least 0.

    Returns:
        `exponent`, `lost` and `mantissa`, `[M]` float64 each.
    """
    halvings = mean * _LOG2_OF_E
    whole = halvings.floor()
    mantissa, own = torch.frexp(torch.exp2(whole - halvings) * separation)
    exponent = own - whole
    # Knuth's two-sum: exact.
    back = exponent - own
    lost = (own - (exponent - back)) + (-whole - back)
    return exponent.masked_fill(separation == 0, -torch.inf), lost, mantissa
