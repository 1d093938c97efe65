"""Spread-out rows by farthest-point sampling."""

from __future__ import annotations

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry

_SPEC = _registry.reference_only("farthest_point")


def farthest_point(rows: Tensor, k: int, *, backend: str | None = None) -> Tensor:
    """`k` rows, each in turn the farthest from those taken before.

    Deterministic, ties to the lowest index.

    Args:
        rows: `[M, D]` float, finite.
        k: Rows to keep, between 1 and `M`.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[k]` int64, ascending.

    Raises:
        InvalidInputError: for wrong shapes, `k` out of range, or a backend that is not to be had.

    >>> import torch
    >>> farthest_point(torch.tensor([[0.0], [1.0], [9.0]]), 3).tolist()
    [0, 1, 2]
    """
    _SPEC.choose(rows.device, backend)
    return reference.farthest_point(rows, k)
