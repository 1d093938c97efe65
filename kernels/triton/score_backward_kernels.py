"""Kernel of the gradient of `score`'s columns."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["columns"])
def _score_dw_kernel(x_ptr, dz_ptr, chunks_ptr, out_ptr, width, columns, stride_xn,
                     BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
                     WIDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """`dzᵀ X` of one chunk of rows, for a block of columns and of `D`: `out[chunk, C, D]`."""
    chunk = tl.program_id(2)
    begin = tl.load(chunks_ptr + chunk * 2)
    end = tl.load(chunks_ptr + chunk * 2 + 1)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_C, BLOCK_D], dtype=tl.float32)
    for row in range(begin, end, BLOCK_N):
        offs_n = row + tl.arange(0, BLOCK_N)
        inside = (offs_n < end)[:, None]
        place = offs_n.to(tl.int64)[:, None]
        x = tl.load(
            x_ptr + place * stride_xn + offs_d[None, :],
            mask=inside & (offs_d < width)[None, :],
            other=0.0,
        )
        dz = tl.load(
            dz_ptr + place * columns + offs_c[None, :],
            mask=inside & (offs_c < columns)[None, :],
            other=0.0,
        )
        if WIDEN:  # for the interpreter, see `_block` of the forward pass
            x, dz = x.to(tl.float32), dz.to(tl.float32)
        acc = tl.dot(dz.T, x, acc, input_precision=PRECISION)
    place = (chunk.to(tl.int64) * columns + offs_c)[:, None] * width + offs_d[None, :]
    tl.store(out_ptr + place, acc, mask=(offs_c < columns)[:, None] & (offs_d < width)[None, :])
