"""Integers as columns of rows in half precision.

Positions travel behind the embeddings in one tensor of the model's dtype, and bfloat16 holds the
integers up to 256 only. So each is written as digits of base 256, which every dtype of models holds
exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 256
#: Numbers below `256**3`.
DIGITS = 3


def to_digits(values: Tensor) -> Tensor:
    """Digits of non-negative integers, the lowest first.

    Args:
        values: `[R, C]` int64 in [0, 256**3).

    Returns:
        `[R, C * 3]` int64 in [0, 256).

    >>> to_digits(torch.tensor([[1, 70000]]))
    tensor([[  1,   0,   0, 112,  17,   1]])
    """
    digits = [values.div(BASE**power, rounding_mode="floor") % BASE for power in range(DIGITS)]
    return torch.stack(digits, dim=-1).flatten(1)


def from_digits(digits: Tensor) -> Tensor:
    """The integers that `to_digits` wrote, after any cast to a dtype of models.

    Args:
        digits: `[R, C * 3]`, any dtype.

    Returns:
        `[R, C]` int64.

    >>> from_digits(to_digits(torch.tensor([[1, 70000]])).bfloat16())
    tensor([[    1, 70000]])
    """
    powers = torch.tensor([BASE**power for power in range(DIGITS)], device=digits.device)
    return (digits.long().unflatten(1, (-1, DIGITS)) * powers).sum(-1)
