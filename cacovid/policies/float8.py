"""Matrix products of 8-bit floats, for devices that have them; used when a policy is asked to.

Both operands are e4m3 with one float32 scale for each row (each output channel of a weight), so
that a row's largest value is the largest number of the format. Sums are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError

#: Largest number of e4m3; between it and 464 values round down to it, above they become NaN.
LARGEST = torch.finfo(torch.float8_e4m3fn).max

#: Rows and columns that a product needs a multiple of.
MULTIPLE = 16


class Float8Weight(NamedTuple):
    """A weight in 8 bits.

    Args:
        values: `[out, in]` float8_e4m3fn.
        scale: `[1, out]` float32; the weight is `values * scale^T`.
    """

    values: Tensor
    scale: Tensor


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` as `values * scale`, each row scaled so that its largest value is the format's largest.

    Args:
        x: `[rows, width]` bfloat16 or float32.

    Returns:
        Values `[rows, width]` float8_e4m3fn and scales `[rows, 1]` float32. A row of zeros stays
        one; NaN stays NaN.
    """
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).float()
    # Half of 2^-126 is no normal number, and its inverse is infinite.
    scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    # Rounding the inverse to bfloat16 makes the largest value 450 at the most, which rounds to 448.
    return (x * scale.reciprocal().to(x.dtype)).to(torch.float8_e4m3fn), scale


def quantise_weight(weight: Tensor) -> Float8Weight:
    """A weight `[out, in]` in 8 bits."""
    values, scale = quantise_rows(weight.float())
    return Float8Weight(values, scale.T.contiguous())


def linear(x: Tensor, weight: Float8Weight, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias` with `x` quantised row by row.

    Args:
        x: `[rows, in]` bfloat16.
        weight: Of `in` columns.
        bias: `[out]` bfloat16, or None.

    Returns:
        `[rows, out]` bfloat16.
    """
    values, scale = quantise_rows(x)
    product: Tensor = torch._scaled_mm(
        values,
        weight.values.T,
        scale_a=scale,
        scale_b=weight.scale,
        bias=bias,
        out_dtype=torch.bfloat16,
    )
    return product


def require_float8(device: torch.device, dtype: torch.dtype, widths: dict[str, int]) -> None:
    """Refuses what has no such products.

    Args:
        device: Where they are to run.
        dtype: Of the policy's weights.
        widths: Sizes of the products' sides, by name.

    Raises:
        InvalidInputError: unless the device is a GPU of compute capability 9.0 or more, torch has
            scaled products, the policy is in bfloat16, and all sizes are multiples of 16.
    """
    advice = "call use_float8(False) for the policy's own precision"
    if not hasattr(torch, "_scaled_mm"):
        raise InvalidInputError(f"torch {torch.__version__} has no scaled products; {advice}")
    if device.type != "cuda":
        raise InvalidInputError(
            f"the policy is on {device}; products in float8 need a GPU of compute capability 9.0 "
            f"or more (Hopper): move it there first, or {advice}"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (9, 0):
        raise InvalidInputError(
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}; products in float8 need 9.0 or more (Hopper): "
            f"{advice}"
        )
    if dtype != torch.bfloat16:
        raise InvalidInputError(
            f"the policy is in {dtype}; products in float8 need torch.bfloat16 around them: call "
            f"policy.bfloat16() first, or {advice}"
        )
    odd = {name: width for name, width in widths.items() if width % MULTIPLE}
    if odd:
        given = ", ".join(f"{name} is {width}" for name, width in odd.items())
        raise InvalidInputError(
            f"{given}; products in float8 need multiples of {MULTIPLE}: {advice}"
        )
