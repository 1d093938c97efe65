"""Cosines between tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1, `[..., D]`; rows of zeros stay zeros."""
    return torch.nn.functional.normalize(rows, dim=-1, eps=1e-12)


def cosine_to_next_frame(frames: Tensor) -> Tensor:
    """`s[t, i] = cos(x[t, i], x[t+1, i])`.

    Args:
        frames: `[t, n, D]` float.

    Returns:
        `[t - 1, n]`, on the device and in the dtype of `frames`; empty for one frame.
    """
    unit = unit_rows(frames)
    return (unit[:-1] * unit[1:]).sum(dim=-1)
