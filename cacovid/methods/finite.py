"""Inputs that are no numbers are refused, not ranked."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError


def require_finite(values: Tensor, what: str, method: str) -> None:
    """Refuses NaN and infinity, which sorting and `argmax` would put somewhere silently.

    Args:
        values: `[n, ...]`, on any device.
        what: How errors call one of the `n`, e.g. `"features of video token"`.
        method: The method's name.

    Raises:
        InvalidInputError: naming the first of the `n` with such a value. On a GPU the device stops
            and the next synchronisation raises, since a look at the values would wait for it.
    """
    if not values.numel():
        return
    ends = torch.stack(torch.aminmax(values))  # in one reading; NaN is both
    finite = torch.isfinite(ends).all()
    if values.is_cuda:
        torch._assert_async(
            finite, f"method {method}: {what}s have NaN or infinite values; look at the input"
        )
    elif not bool(finite):
        each = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
        first = int(each.to(torch.int8).argmin())
        raise InvalidInputError(
            f"{what} {first} has NaN or infinite values; method {method!r} expects numbers, and "
            f"nothing was selected: look at the input, or at a model in float16 that overflows"
        )
