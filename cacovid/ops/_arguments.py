"""Checks of arguments that need no look at the values, so that nothing waits for a device.

Values (NaN, infinities, indices out of range) are checked by the implementations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference._checks import whole_number


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


def rows_and_count(rows: Tensor, k: int) -> None:
    """Raises:
    InvalidInputError: unless `rows` is `[M, D]` floating point and `1 <= k <= M`, an integer.
    """
    if rows.dim() != 2 or not rows.is_floating_point():
        raise InvalidInputError(
            f"rows are {tuple(rows.shape)} {rows.dtype}; expected [M, D] floating point"
        )
    if not 1 <= whole_number(k, "k") <= rows.shape[0]:
        raise InvalidInputError(f"k is {k}; expected 1 to {rows.shape[0]}, the number of rows")


def has_form(rows: Tensor, op: str, backend: str | None) -> bool:
    """Whether compiled forms take the rows' dtype; float64 is for the reference.

    Raises:
        InvalidInputError: if they do not, and a backend was named.
    """
    if rows.dtype != torch.float64:
        return True
    if backend is not None:
        raise InvalidInputError(
            f"backend {backend!r} of {op} takes rows up to float32; got float64: convert them, or "
            f"leave the backend open"
        )
    return False


def as_int64(value: int) -> int:
    """`value` modulo 2**64, with a sign: the schemas' integers are signed, the bits count.

    Raises:
        InvalidInputError: for a seed or an offset that is no integer.
    """
    value = whole_number(value, "a seed or an offset")
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value
