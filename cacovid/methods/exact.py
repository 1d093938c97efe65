"""Rows whose products add up without rounding, so that what is equal compares as equal.

A matrix product adds in an order that depends on where a row stands: of two copies of a row, as
still frames give them, one comes out nearer than the other, and noise decides what ties should.
Rows of few enough bits have exact products in float64, whatever the order, backend or block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.cosine import unit_rows

#: Rows are at most `2**BITS` steps long. No sum of products exceeds the product of two lengths
#: (Cauchy-Schwarz), and no squared distance `2**(2 * BITS + 2)`, a bit below what float64 counts.
BITS = 25


def exact_rows(rows: Tensor, members: Tensor | None = None) -> Tensor:
    """Rows rounded to a step of their set: a power of two, `2**-25` to `2**-24` of the longest.

    Args:
        rows: `[B, M, D]` float: `B` sets.
        members: `[B, M]` bool: rows that count for the longest; products of the others may round.

    Returns:
        `[B, M, D]` float64. Scalar products and squared distances of members are exact.
    """
    lengths = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    if members is not None:
        lengths = lengths.masked_fill(~members, 0.0)
    longest = lengths.amax(dim=1)[:, None, None]
    # A number over its mantissa: the power of two above it, which `exp2` need not hit on GPUs.
    step = torch.where(longest > 0, longest / torch.frexp(longest).mantissa, 1.0) * 2.0**-BITS
    return (rows / step).round_().mul_(step)


def exact_unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1 (rows of zeros stay zeros), rounded to whole multiples of `2**-24`.

    Args:
        rows: `[..., D]` float.

    Returns:
        `[..., D]` float64. Scalar products are exact.
    """
    step = 2.0 ** (1 - BITS)  # their lengths may exceed 1 by rounding
    return unit_rows(rows).double().div_(step).round_().mul_(step)
