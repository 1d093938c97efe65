"""How far a floating point result may be from the exact one: as derived from plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cacovid.types import Grid, Prompt

#: Units in the last place of float32 that a result may differ by where plain PyTorch happens to hit
#: the exact value: one for its own rounding, and one for each of the last sum's operands.
BAND = 4.0


def largest_error(got: Tensor, exact: Tensor) -> float:
    """The largest distance to the exact values; 0 for no values, infinite for a stray NaN."""
    if got.shape != exact.shape:
        raise AssertionError(f"the shape is {tuple(got.shape)}; expected {tuple(exact.shape)}")
    if not got.numel():
        return 0.0
    error = float((got.detach().double() - exact.detach().double()).abs().max())
    return error if error == error else float("inf")


def assert_within_budget(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """At most twice the error of plain PyTorch, and a band of float32's own rounding.

    Args:
        got: What the kernel gave.
        plain: The plain formula in the same low precision.
        exact: The plain formula in float64.
    """
    error, allowed = largest_error(got, exact), 2.0 * largest_error(plain, exact)
    size = 1.0 + (float(exact.abs().max()) if exact.numel() else 0.0)
    band = BAND * torch.finfo(torch.float32).eps * size
    if not error <= allowed + band:
        raise AssertionError(
            f"the error is {error:.3e}; twice plain PyTorch's is {allowed:.3e}, the band {band:.3e}"
        )


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating point tensor in it as `dtype`; grids and prompts stay."""
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed; grids and prompts stay.

    Args:
        value: A tensor, or a tuple, list, dictionary or dataclass that holds some.
        change: Of one tensor.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (Grid, Prompt)):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(part, change) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(part, change) for part in value)
    if isinstance(value, dict):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **parts)
    return value
