"""Rows of the kept tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError


def gather(rows: Tensor, keep: Tensor) -> Tensor:
    """The rows that `keep` names, in its order: `out[i] = rows[keep[i]]`.

    Exact. The gradient to `rows` is the sum over the places where a row stands.

    Args:
        rows: `[S, D]`, floating point or int64.
        keep: `[K]` int64 on the same device, each in [0, S). `K` may be 0.

    Returns:
        `[K, D]` of the dtype and device of `rows`, contiguous.

    Raises:
        InvalidInputError: for wrong shapes, dtypes or devices, or (found on the CPU) an index that
            is out of range.

    >>> gather(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 2])).tolist()
    [[1.0, 2.0], [5.0, 6.0]]
    """
    check_gather(rows, keep)
    if not keep.is_cuda:  # on a GPU, index_select stops the kernel instead
        bad = torch.nonzero((keep < 0) | (keep >= rows.shape[0]))
        if bad.numel():
            first = int(bad[0])
            raise InvalidInputError(
                f"keep[{first}] is {int(keep[first])}; rows has {rows.shape[0]} rows"
            )
    return rows.index_select(0, keep)


def check_gather(rows: Tensor, keep: Tensor) -> None:
    """What `gather` can refuse without a look at the values.

    Raises:
        InvalidInputError: for wrong shapes, dtypes or devices.
    """
    if rows.dim() != 2:
        raise InvalidInputError(f"rows has shape {tuple(rows.shape)}; expected [S, D]")
    if not rows.is_floating_point() and rows.dtype != torch.int64:
        raise InvalidInputError(f"rows is {rows.dtype}; expected floating point or int64")
    if keep.dim() != 1 or keep.dtype != torch.int64:
        raise InvalidInputError(
            f"keep is {keep.dtype} of shape {tuple(keep.shape)}; expected int64 [K], as "
            f"select_tokens returns it"
        )
    if rows.device != keep.device:
        raise InvalidInputError(
            f"rows is on {rows.device} and keep on {keep.device}; move them to one device"
        )
