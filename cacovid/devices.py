"""Devices and dtypes as callers name them, checked before anything is put there."""

from __future__ import annotations

import torch

from cacovid.errors import InvalidInputError


def checked_device(device: torch.device | str, what: str = "device") -> torch.device:
    """The device of a name, without an index that was not given.

    Args:
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, or the like.
        what: How errors call the argument.

    Raises:
        InvalidInputError: for a name that torch does not know, or a device that is not there.

    >>> checked_device("cpu")
    device(type='cpu')
    """
    try:
        given = torch.device(device)
    except (RuntimeError, TypeError):
        raise InvalidInputError(
            f"{what} is {device!r}; expected cpu, cuda, or a CUDA device by its index, such as "
            f"cuda:0"
        ) from None
    if given.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0 or not torch.cuda.is_available():
            raise InvalidInputError(
                f"{what} is {str(device)!r}, but torch sees no CUDA device; expected cpu. "
                f"`cacovid doctor` says why"
            )
        if (given.index or 0) >= count:
            raise InvalidInputError(
                f"{what} is {str(device)!r}; expected an index below {count}, the number of CUDA "
                f"devices"
            )
    elif given.type != "cpu":
        try:
            # Of a device that holds no values ("meta") there is none to be had.
            torch.zeros(1, device=given).item()
        except (RuntimeError, AssertionError, ImportError):
            raise InvalidInputError(
                f"{what} is {str(device)!r}, which this torch cannot use; expected cpu or cuda"
            ) from None
    return given


def checked_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """The floating point dtype of a name; `"auto"` (as the weights are stored) stays.

    Args:
        dtype: A dtype, its name, or `"auto"`.

    Raises:
        InvalidInputError: for a name that torch does not know, or no floating point.

    >>> checked_dtype("bfloat16")
    torch.bfloat16
    """
    if dtype == "auto":
        return dtype
    given = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(given, torch.dtype) or not given.is_floating_point:
        raise InvalidInputError(
            f"dtype is {dtype!r}; expected float32, bfloat16, float16, float64 or auto (as the "
            f"weights are stored)"
        )
    return given
