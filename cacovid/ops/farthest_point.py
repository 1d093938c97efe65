"""Spread-out rows by farthest-point sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.reference.farthest_point import farthest_point as farthest_point_reference


def farthest_point(rows: Tensor, k: int, *, backend: str | None = None) -> Tensor:
    """`k` rows, each in turn the farthest from those taken before.

    Deterministic, ties to the lowest index.

    Args:
        rows: `[M, D]` float, finite; used in float64. Compiled forms take up to float32, the
            reference serves float64.
        k: Rows to keep, between 1 and `M`.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, `k` out of range, or a backend that is not to be had.

    >>> farthest_point(torch.tensor([[0.0], [1.0], [9.0]]), 3).tolist()
    [0, 1, 2]
    """
    form = _SPEC.choose(rows.device, backend)
    if form == "reference" or not _arguments.has_form(rows, "farthest_point", backend):
        return farthest_point_reference(rows, k)
    _arguments.rows_and_count(rows, k)
    rows = rows.detach()
    # A GPU reads 16-bit rows as they are: half the traffic.
    return _registry.call(_OP, rows.float() if form == "cpu" else rows, k)


def _fake(rows: Tensor, k: int) -> Tensor:
    return rows.new_empty(k, dtype=torch.int64)


_SPEC, _OP = _registry.define(
    "farthest_point",
    "(Tensor rows, int k) -> Tensor",
    backends=("cuda", "cpu"),
    reference=farthest_point_reference,
    fake=_fake,
)
