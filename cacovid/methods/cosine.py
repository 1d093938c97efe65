"""Cosines between tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1, `[..., D]`; rows of zeros stay zeros."""
    return torch.nn.functional.normalize(rows, dim=-1, eps=1e-12)


def change_to_next(rows: Tensor) -> Tensor:
    """`1 - cos(x[t, ...], x[t+1, ...])`, as half the squared distance of rows of length 1.

    That is exactly 0 between copies and tells apart changes far too small for `1 - cos`. A row of
    zeros is at 1/2 from every other one.

    Args:
        rows: `[t, ..., D]` float, such as frames of tokens.

    Returns:
        `[t - 1, ...]`, on the device and in the dtype of `rows`; empty for one frame.
    """
    return 0.5 * unit_rows(rows).diff(dim=0).square_().sum(dim=-1)


def cosine_to_next(rows: Tensor) -> Tensor:
    """`cos(x[t, ...], x[t+1, ...])`, exactly 1 between copies; see `change_to_next`."""
    return 1.0 - change_to_next(rows)
