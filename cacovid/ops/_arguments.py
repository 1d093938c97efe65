"""Checks of arguments that need no look at the values, so that nothing waits for a device.

Values (NaN, infinities, indices out of range) are checked by the implementations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError


def scores(values: Tensor, count: int, name: str) -> Tensor:
    """`values` as a detached float32 `[count]`.

    Raises:
        InvalidInputError: for a wrong shape or dtype.
    """
    if values.dim() != 1 or values.shape[0] != count:
        raise InvalidInputError(
            f"{name} has shape {tuple(values.shape)}; the grid asks for [{count}]"
        )
    if not values.is_floating_point():
        raise InvalidInputError(f"{name} is {values.dtype}; expected floating point scores")
    return values.detach().to(torch.float32)


def same_device(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Raises:
    InvalidInputError: if two tensors stand on different devices.
    """
    if a.device != b.device:
        raise InvalidInputError(
            f"{name_a} is on {a.device} and {name_b} on {b.device}; move them to one device"
        )
