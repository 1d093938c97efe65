"""Checks that several ops share; each message says what was given and what was expected."""

from __future__ import annotations

import contextlib
import operator

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import Grid, PerVideo


def float32_scores(scores: Tensor, count: int, name: str, *, allow_infinite: bool) -> Tensor:
    """`scores` as a detached, contiguous float32 `[count]` without NaN.

    Raises:
        InvalidInputError: wrong shape or dtype, NaN, or an infinity where none is allowed.
    """
    if scores.dim() != 1 or scores.numel() != count:
        raise InvalidInputError(
            f"{name} has shape {tuple(scores.shape)}; the grid asks for [{count}]"
        )
    if not scores.is_floating_point():
        raise InvalidInputError(f"{name} is {scores.dtype}; expected floating point scores")
    scores = scores.detach().to(torch.float32).contiguous()
    bad = torch.isnan(scores) if allow_infinite else ~torch.isfinite(scores)
    if bool(bad.any()):
        kind = "NaN" if allow_infinite else "NaN or infinite values"
        first = int(bad.to(torch.int8).argmax())
        raise InvalidInputError(
            f"{name} has {kind} (first at {first}); the policy or its input is broken, "
            f"nothing was selected"
        )
    return scores


def ratios(grid: Grid, value: PerVideo, name: str) -> tuple[float, ...]:
    """`value` per video, each in (0, 1].

    Raises:
        InvalidInputError: for a value outside (0, 1] or a wrong number of values.
    """
    values = grid.per_video(value, name)
    for ratio in values:
        if not 0.0 < ratio <= 1.0:
            raise InvalidInputError(f"{name} is {ratio}; expected a number in (0, 1]")
    return values


def whole_number(value: int, name: str) -> int:
    """`value` as an integer.

    Raises:
        InvalidInputError: for what is none, such as 5.0.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if not isinstance(value, (bool, Tensor)):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise InvalidInputError(f"{name} is {value!r}; expected an integer")


def at_least_one(value: int, name: str) -> int:
    """`value`, if it is an integer of at least 1.

    Raises:
        InvalidInputError: otherwise.
    """
    value = whole_number(value, name)
    if value < 1:
        raise InvalidInputError(f"{name} is {value}; expected at least 1")
    return value


def rows_and_count(rows: Tensor, k: int) -> Tensor:
    """`rows` detached, in at least float32, if `k` of them can be kept.

    Raises:
        InvalidInputError: unless `rows` is `[M, D]`, finite floating point, and `k` an integer,
            `1 <= k <= M`.
    """
    if rows.dim() != 2 or not rows.is_floating_point():
        raise InvalidInputError(
            f"rows are {tuple(rows.shape)} {rows.dtype}; expected [M, D] floating point"
        )
    if not 1 <= whole_number(k, "k") <= rows.shape[0]:
        raise InvalidInputError(f"k is {k}; expected 1 to {rows.shape[0]}, the number of rows")
    if not bool(torch.isfinite(rows).all()):
        raise InvalidInputError("rows have NaN or infinite values; expected finite features")
    rows = rows.detach()
    return rows if rows.dtype == torch.float64 else rows.float()
