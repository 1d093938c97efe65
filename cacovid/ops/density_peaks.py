"""Representative rows by density peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.reference._checks import at_least_one
from cacovid.reference.density_peaks import density_peaks as density_peaks_reference


def density_peaks(
    rows: Tensor, k: int, neighbours: int = 4, *, backend: str | None = None
) -> Tensor:
    """The `k` rows that are dense and far from denser ones.

    Distances are `|x_i - x_j| / sqrt(D)`; the density of a row is `exp(-mean of its smallest
    squared distances)`, the row itself counted; a row's separation is its distance to the nearest
    denser row. The largest products of the two are kept (CaCoVID's frame rollouts, and several
    training-free baselines). Deterministic, ties to the lowest index.

    Args:
        rows: `[M, D]` float, finite; used in float64. Compiled forms take up to float32, the
            reference serves float64.
        k: Rows to keep, between 1 and `M`.
        neighbours: Distances that make the density.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, `k` out of range, or a backend that is not to be had.

    >>> density_peaks(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 4).tolist()
    [0, 1, 2, 3]
    """
    form = _SPEC.choose(rows.device, backend)
    if form == "reference" or not _arguments.has_form(rows, "density_peaks", backend):
        return density_peaks_reference(rows, k, neighbours)
    _arguments.rows_and_count(rows, k)
    at_least_one(neighbours, "neighbours")
    rows = rows.detach()
    # A GPU reads 16-bit rows as they are: half the traffic.
    return _registry.call(_OP, rows.float() if form == "cpu" else rows, k, neighbours)


def _fake(rows: Tensor, k: int, neighbours: int) -> Tensor:
    return rows.new_empty(k, dtype=torch.int64)


_SPEC, _OP = _registry.define(
    "density_peaks",
    "(Tensor rows, int k, int neighbours) -> Tensor",
    backends=("cuda", "cpu"),
    reference=density_peaks_reference,
    fake=_fake,
)
