"""Rows of the kept tokens, with their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cacovid.ops import _registry
from cacovid.reference.gather import check_gather
from cacovid.reference.gather import gather as gather_reference


def gather(rows: Tensor, keep: Tensor, *, backend: str | None = None) -> Tensor:
    """The rows that `keep` names, in its order: `out[i] = rows[keep[i]]`.

    Exact on every backend. The gradient to `rows` adds up where an index is repeated; there the
    order of the sum, and so its rounding, is that of `Tensor.index_add`.

    Args:
        rows: `[S, D]`, floating point or int64.
        keep: `[K]` int64 on the same device, each in [0, S). `K` may be 0.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[K, D]` of the dtype and device of `rows`, contiguous.

    Raises:
        InvalidInputError: for wrong shapes, dtypes or devices, an index that is out of range
            (found on the CPU), or a backend that is not to be had.

    >>> gather(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 2])).tolist()
    [[1.0, 2.0], [5.0, 6.0]]
    """
    check_gather(rows, keep)
    if _SPEC.choose(rows.device, backend) == "reference":
        return gather_reference(rows, keep)
    if rows.requires_grad and torch.is_grad_enabled():
        gathered: Tensor = _Gather.apply(rows, keep)
        return gathered
    return _registry.call(_OP, rows, keep)


class _Gather(torch.autograd.Function):
    """Outside the op, where autograd costs less than a registration inside it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.length = rows.shape[0]
        return _registry.call(_OP, rows, keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        zeros = grad.new_zeros((ctx.length, grad.shape[1]))
        return zeros.index_add(0, keep, grad), None


def _fake(rows: Tensor, keep: Tensor) -> Tensor:
    return rows.new_empty((keep.shape[0], rows.shape[1]))


_SPEC, _OP = _registry.define(
    "gather",
    "(Tensor rows, Tensor keep) -> Tensor",
    backends=("cuda", "cpu"),
    reference=gather_reference,
    fake=_fake,
)
