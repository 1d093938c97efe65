"""Rows whose products add up without rounding, so that what is equal compares as equal.

A matrix product adds in an order that depends on where a row stands: of two copies of a row, as
still frames give them, one comes out nearer than the other, and noise decides what ties should.
Rows of few enough bits have exact products in float64, whatever the order, backend or block. Where
float64 is too slow, `first_copies` tells which rows are one and the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.cosine import unit_rows

#: Rows are at most `2**BITS` steps long. No sum of products exceeds the product of two lengths
#: (Cauchy-Schwarz), and no squared distance `2**(2 * BITS + 2)`, a bit below what float64 counts.
BITS = 25

#: Numbers that `first_copies` looks at at a time.
_AT_ONCE = 1 << 22


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


def _numbers(rows: Tensor, odd: Tensor) -> Tensor:
    """`[M]` int64 from the bits of float32 rows; sums wrap around, the same in any order."""
    mixed = (rows + 0.0).view(torch.int32).long() * odd  # adding 0 makes -0 a 0
    return (mixed ^ (mixed >> 32)).sum(dim=1)


def first_copies(rows: Tensor) -> Tensor:
    """The lowest index of a row with the same numbers, for each row; nothing is read back.

    Rows are sorted by a number made of their bits, and compared with the first of the same number.

    Args:
        rows: `[M, D]` float32.

    Returns:
        `[M]` int64, on the device of `rows`. Copies might be missed only where different rows have
        the same number of 64 bits.
    """
    count, width = rows.shape
    generator = torch.Generator().manual_seed(0)
    odd = 2 * torch.randint(-(2**62), 2**62, (width,), generator=generator) + 1
    odd = odd.to(rows.device)
    parts = rows.split(max(1, _AT_ONCE // width))
    number = torch.cat([_numbers(part, odd) for part in parts])
    order = torch.sort(number, stable=True)
    begins = torch.nn.functional.pad(order.values[1:] != order.values[:-1], (1, 0), value=True)
    place = torch.arange(count, device=rows.device)
    begin = torch.where(begins, place, 0).cummax(dim=0).values
    first = torch.empty_like(place).scatter_(0, order.indices, order.indices[begin])
    same = [
        (part == rows.index_select(0, other)).all(dim=1)
        for part, other in zip(parts, first.split(len(parts[0])), strict=True)
    ]
    return torch.where(torch.cat(same), first, place)
