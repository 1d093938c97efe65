"""Representative rows by density peaks."""

from __future__ import annotations

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry

_SPEC = _registry.reference_only("density_peaks")


def density_peaks(
    rows: Tensor, k: int, neighbours: int = 4, *, backend: str | None = None
) -> Tensor:
    """The `k` rows that are dense and far from denser ones.

    Distances are `|x_i - x_j| / sqrt(D)`; the density of a row is `exp(-mean of its smallest
    squared distances)`, the row itself counted; a row's separation is its distance to the nearest
    denser row. The largest products of the two are kept (CaCoVID's frame rollouts, and several
    training-free baselines). Deterministic, ties to the lowest index.

    Args:
        rows: `[M, D]` float, finite.
        k: Rows to keep, between 1 and `M`.
        neighbours: Distances that make the density.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, `k` out of range, or a backend that is not to be had.

    >>> import torch
    >>> density_peaks(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 4).tolist()
    [0, 1, 2, 3]
    """
    _SPEC.choose(rows.device, backend)
    return reference.density_peaks(rows, k, neighbours)
