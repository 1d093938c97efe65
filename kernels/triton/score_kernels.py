"""Kernels of `score`: the forward pass of the fused policy (ALGORITHMS 1.1).

A fold's columns stand as rows: `H*Q` of slots, `P` of features, `P` more with inter-frame columns,
so that both operands of the product run along `D`. `S` below is `H*Q` of the fold at hand; widths
are padded to powers of two and masked.

A tile is a block of rows of one video, and a row of the table `tiles` (`score_plan.TILE`). A
*piece* is what a tile and a frame have in common; its sum over rows is written once, and a frame's
pieces are added in their order: no atomics, so the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _bounded(score, bound, HAS_BOUND: tl.constexpr):
    if HAS_BOUND:
        # tanh, which Triton has only in a library that the interpreter lacks.
        score = bound * (2.0 * tl.sigmoid(2.0 * score / bound) - 1.0)
    return score


@triton.jit
def _mix_slots(z_slots, values_ptr, first_slot, slots,
               HEADS: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr, FEATURES: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """Softmax over each head's slots, times the values: `[BLOCK_N, FEATURES]`."""
    offs_s = tl.arange(0, WIDTH)
    offs_p = tl.arange(0, FEATURES)
    attention = tl.zeros(z_slots.shape, dtype=tl.float32)
    for h in tl.static_range(HEADS):
        own = (offs_s // (slots // HEADS) == h)[None, :]
        logits = tl.where(own, z_slots, float("-inf"))
        weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        attention += weights / tl.sum(weights, axis=1)[:, None]
    values = tl.load(
        values_ptr + (first_slot + offs_s)[:, None] * P + offs_p[None, :],
        mask=(offs_s < slots)[:, None] & (offs_p < P)[None, :],
        other=0.0,
    )
    return tl.dot(attention, values, input_precision=PRECISION)


@triton.jit
def _finish_tile(u, tile_ptr, token_head_ptr, token_ptr, pieces_ptr, bound,
                 P: tl.constexpr, P_TOKEN: tl.constexpr, FEATURES: tl.constexpr,
                 HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BOUND: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Token scores of a tile and its pieces of the frames' sums."""
    begin = tl.load(tile_ptr)
    end = tl.load(tile_ptr + 1)
    offs_n = begin + tl.arange(0, BLOCK_N)
    offs_p = tl.arange(0, FEATURES)
    offs_h = tl.arange(0, HIDDEN)
    inside = offs_n < end
    # What stands beside the features is another fold's.
    u = tl.where((offs_p < P)[None, :], u, 0.0)

    # Flat: input bias, matrix [out, in], bias, output, output bias. The matrix is widened by zeros
    # for the frame head's features, which is cheaper than cutting them off.
    head_ptr = token_head_ptr + tl.load(tile_ptr + 2) * (P_TOKEN * P_TOKEN + 3 * P_TOKEN + 1)
    in_p = offs_p < P_TOKEN
    in_h = offs_h < P_TOKEN
    hidden = _silu(u + tl.load(head_ptr + offs_p, mask=in_p, other=0.0)[None, :])
    head_ptr += P_TOKEN
    weights = tl.load(
        head_ptr + offs_h[None, :] * P_TOKEN + offs_p[:, None],
        mask=in_p[:, None] & in_h[None, :],
        other=0.0,
    )
    head_ptr += P_TOKEN * P_TOKEN
    hidden = tl.dot(hidden, weights, input_precision=PRECISION)
    hidden = _silu(hidden + tl.load(head_ptr + offs_h, mask=in_h, other=0.0)[None, :])
    head_ptr += P_TOKEN
    output = tl.load(head_ptr + offs_h, mask=in_h, other=0.0)
    score = tl.sum(hidden * output[None, :], axis=1) + tl.load(head_ptr + P_TOKEN)
    tl.store(token_ptr + offs_n, _bounded(score, bound, HAS_BOUND), mask=inside)

    video_begin = tl.load(tile_ptr + 3)
    tokens_per_frame = tl.load(tile_ptr + 4)
    pieces_ptr += tl.load(tile_ptr + 5).to(tl.int64) * P
    frame = (offs_n - video_begin) // tokens_per_frame
    first = (begin - video_begin) // tokens_per_frame
    count = (end - 1 - video_begin) // tokens_per_frame - first + 1
    for f in range(count):
        own = inside & (frame == first + f)
        total = tl.sum(tl.where(own[:, None], u, 0.0), axis=0)
        tl.store(pieces_ptr + f * P + offs_p, total, mask=offs_p < P)


@triton.jit
def _rows(pointer, stride, row, column, last_row, width,
          BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """A block of rows by pointers; rows past `last_row` repeat it, columns past `width` are 0."""
    offs_k = column + tl.arange(0, BLOCK_K)
    offs_n = tl.minimum(row + tl.arange(0, BLOCK_N), last_row).to(tl.int64)
    block = pointer + offs_n[:, None] * stride + offs_k[None, :]
    if EVEN:
        return tl.load(block)
    return tl.load(block, mask=(offs_k < width)[None, :], other=0.0)


@triton.jit
def _block(x, stride, row, column, last_row, width,
           BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
           DESCRIPTORS: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """A block of rows by a tensor descriptor, where `x` is one, or by pointers.

    `WIDEN` is for Triton's interpreter, which cannot multiply bfloat16; in float32 the products are
    the same.
    """
    if DESCRIPTORS:
        rows = x.load([row, column])
    else:
        rows = _rows(x, stride, row, column, last_row, width, BLOCK_N, BLOCK_K, EVEN)
    if WIDEN:
        rows = rows.to(tl.float32)
    return rows


@triton.jit(do_not_specialize=["tokens", "columns", "stride_zn"])
def _score_fwd_kernel(x, w_slots, w_features, tiles_ptr, values_ptr, token_head_ptr,
                      token_ptr, pieces_ptr, z_ptr, squares_ptr,
                      tokens, width, columns, stride_xn, stride_zn, eps, bound,
                      HEADS: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr,
                      P_TOKEN: tl.constexpr, FEATURES: tl.constexpr, HIDDEN: tl.constexpr,
                      JOINED: tl.constexpr, HAS_BOUND: tl.constexpr, STORE_Z: tl.constexpr,
                      BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr,
                      EVEN: tl.constexpr, DESCRIPTORS: tl.constexpr, WIDEN: tl.constexpr,
                      PRECISION: tl.constexpr, HEAD_PRECISION: tl.constexpr):  # fmt: skip
    """Scores of a tile from one reading of its rows of `X_vid`; no inter-frame columns.

    With `STORE_Z`, `X W` before the rows' factors and the squares are written too, for a gradient.
    """
    tile_ptr = tiles_ptr + tl.program_id(0) * 9
    begin = tl.load(tile_ptr)
    slots = tl.load(tile_ptr + 6)
    row_w = tl.load(tile_ptr + 8)

    squares = tl.zeros([BLOCK_N], dtype=tl.float32)
    # Where both parts are of one width, one product of twice the width keeps the tensor cores
    # busier than two.
    if JOINED:
        acc = tl.zeros([BLOCK_N, 2 * WIDTH], dtype=tl.float32)
    else:
        acc_s = tl.zeros([BLOCK_N, WIDTH], dtype=tl.float32)
        acc_u = tl.zeros([BLOCK_N, FEATURES], dtype=tl.float32)
    for step in range(STEPS):
        k = step * BLOCK_K
        rows = _block(x, stride_xn, begin, k, tokens - 1, width, BLOCK_N, BLOCK_K, EVEN,
                      DESCRIPTORS, WIDEN)  # fmt: skip
        wide = rows.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        if JOINED:
            w = _block(w_slots, width, row_w, k, columns - 1, width, 2 * WIDTH, BLOCK_K, EVEN,
                       DESCRIPTORS, WIDEN)  # fmt: skip
            acc = tl.dot(rows, w.T, acc, input_precision=PRECISION)
        else:
            w = _block(w_slots, width, row_w, k, columns - 1, width, WIDTH, BLOCK_K, EVEN,
                       DESCRIPTORS, WIDEN)  # fmt: skip
            acc_s = tl.dot(rows, w.T, acc_s, input_precision=PRECISION)
            w = _block(w_features, width, row_w + slots, k, columns - 1, width, FEATURES, BLOCK_K,
                       EVEN, DESCRIPTORS, WIDEN)  # fmt: skip
            acc_u = tl.dot(rows, w.T, acc_u, input_precision=PRECISION)
    if JOINED:
        acc_s, acc_u = tl.split(tl.permute(tl.reshape(acc, [BLOCK_N, 2, WIDTH]), (0, 2, 1)))

    if STORE_Z:
        offs_n = begin + tl.arange(0, BLOCK_N)
        offs_s = tl.arange(0, WIDTH)
        offs_p = tl.arange(0, FEATURES)
        inside = offs_n < tl.load(tile_ptr + 1)
        tl.store(squares_ptr + offs_n, squares, mask=inside)
        z_rows = z_ptr + offs_n.to(tl.int64)[:, None] * stride_zn
        mask = inside[:, None] & (offs_s < slots)[None, :]
        tl.store(z_rows + offs_s[None, :], acc_s, mask=mask)
        mask = inside[:, None] & (offs_p < P)[None, :]
        tl.store(z_rows + (slots + offs_p)[None, :], acc_u, mask=mask)

    factor = tl.rsqrt(squares / width + eps)[:, None]
    u = acc_u * factor + _mix_slots(acc_s * factor, values_ptr, tl.load(tile_ptr + 7), slots, HEADS,
                                    WIDTH, P, FEATURES, HEAD_PRECISION)  # fmt: skip
    _finish_tile(u, tile_ptr, token_head_ptr, token_ptr, pieces_ptr, bound, P, P_TOKEN, FEATURES,
                 HIDDEN, BLOCK_N, HAS_BOUND, HEAD_PRECISION)  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "columns", "stride_zn"])
def _score_project_kernel(x, w, tiles_ptr, z_ptr, squares_ptr,
                          tokens, width, columns, stride_xn, stride_zn,
                          EXTRA: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
                          BLOCK_K: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
                          DESCRIPTORS: tl.constexpr, WIDEN: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    """`X W` of a tile, a block of columns and a part of `D`, and the rows' squares.

    Blocks of columns are neighbours in the launch, so that a tile comes from memory once. `EXTRA`
    is the number of columns beside the slots.
    """
    block = tl.program_id(0)
    split = tl.program_id(2)
    tile_ptr = tiles_ptr + tl.program_id(1) * 9
    begin = tl.load(tile_ptr)
    own_columns = tl.load(tile_ptr + 6) + EXTRA
    row_w = tl.load(tile_ptr + 8) + block * BLOCK_C
    squares = tl.zeros([BLOCK_N], dtype=tl.float32)
    acc = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for step in range(STEPS):
        k = (split * STEPS + step) * BLOCK_K
        rows = _block(x, stride_xn, begin, k, tokens - 1, width, BLOCK_N, BLOCK_K, EVEN,
                      DESCRIPTORS, WIDEN)  # fmt: skip
        wide = rows.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        weights = _block(w, width, row_w, k, columns - 1, width, BLOCK_C, BLOCK_K, EVEN,
                         DESCRIPTORS, WIDEN)  # fmt: skip
        acc = tl.dot(rows, weights.T, acc, input_precision=PRECISION)
    offs_n = begin + tl.arange(0, BLOCK_N)
    offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = offs_n < tl.load(tile_ptr + 1)
    row = split.to(tl.int64) * tokens + offs_n
    if block == 0:
        tl.store(squares_ptr + row, squares, mask=inside)
    mask = inside[:, None] & (offs_c < own_columns)[None, :]
    tl.store(z_ptr + row[:, None] * stride_zn + offs_c[None, :], acc, mask=mask)


@triton.jit
def _summed(z_ptr, rows, stride_zn, first, count, inside, tokens,
            BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SPLIT_K: tl.constexpr):  # fmt: skip
    """The splits' parts of `count` columns from `first` on, added in their order."""
    offs = tl.arange(0, BLOCK_C)
    mask = inside[:, None] & (offs < count)[None, :]
    place = rows[:, None] * stride_zn + (first + offs)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for _ in range(SPLIT_K):
        total += tl.load(z_ptr + place, mask=mask, other=0.0)
        place += stride_zn.to(tl.int64) * tokens
    return total


@triton.jit
def _factors(squares_ptr, rows, inside, tokens, width, eps,
             BLOCK_N: tl.constexpr, SPLIT_K: tl.constexpr):  # fmt: skip
    """The RMSNorm's factors of rows, `[BLOCK_N, 1]`."""
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    for split in range(SPLIT_K):
        total += tl.load(squares_ptr + rows + split * tokens, mask=inside, other=0.0)
    return tl.rsqrt(total / width + eps)[:, None]


@triton.jit(do_not_specialize=["tokens", "width", "stride_zn"])
def _score_finish_kernel(z_ptr, squares_ptr, tiles_ptr, values_ptr, token_head_ptr, token_ptr,
                         pieces_ptr, tokens, width, stride_zn, eps, bound,
                         HEADS: tl.constexpr, SLOTS: tl.constexpr, P: tl.constexpr,
                         P_TOKEN: tl.constexpr, FEATURES: tl.constexpr, HIDDEN: tl.constexpr,
                         INTER_FRAME: tl.constexpr, HAS_BOUND: tl.constexpr, BLOCK_N: tl.constexpr,
                         SPLIT_K: tl.constexpr, HEAD_PRECISION: tl.constexpr):  # fmt: skip
    """Scores of a tile from `X W`: splits added in their order, differences to the last frame."""
    tile_ptr = tiles_ptr + tl.program_id(0) * 9
    offs_n = tl.load(tile_ptr) + tl.arange(0, BLOCK_N)
    rows = offs_n.to(tl.int64)
    inside = offs_n < tl.load(tile_ptr + 1)
    slots = tl.load(tile_ptr + 6)
    factor = _factors(squares_ptr, rows, inside, tokens, width, eps, BLOCK_N, SPLIT_K)

    # Head by head, so that few columns are held at a time.
    own_slots = slots // HEADS
    offs_s = tl.arange(0, SLOTS)
    offs_p = tl.arange(0, FEATURES)
    u = tl.zeros([BLOCK_N, FEATURES], dtype=tl.float32)
    for h in range(HEADS):
        first = h * own_slots
        z = _summed(z_ptr, rows, stride_zn, first, own_slots, inside, tokens, BLOCK_N, SLOTS,
                    SPLIT_K)  # fmt: skip
        logits = tl.where((offs_s < own_slots)[None, :], z * factor, float("-inf"))
        weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        weights = weights / tl.sum(weights, axis=1)[:, None]
        values = tl.load(
            values_ptr + (tl.load(tile_ptr + 7) + first + offs_s)[:, None] * P + offs_p[None, :],
            mask=(offs_s < own_slots)[:, None] & (offs_p < P)[None, :],
            other=0.0,
        )
        u = tl.dot(weights, values, u, input_precision=HEAD_PRECISION)
    z = _summed(z_ptr, rows, stride_zn, slots, P, inside, tokens, BLOCK_N, FEATURES, SPLIT_K)
    u += factor * z
    if INTER_FRAME:
        z = _summed(z_ptr, rows, stride_zn, slots + P, P, inside, tokens, BLOCK_N, FEATURES,
                    SPLIT_K)  # fmt: skip
        u += factor * z
        tokens_per_frame = tl.load(tile_ptr + 4)
        before = inside & (offs_n - tokens_per_frame >= tl.load(tile_ptr + 3))
        rows -= tokens_per_frame
        factor = _factors(squares_ptr, rows, before, tokens, width, eps, BLOCK_N, SPLIT_K)
        z = _summed(z_ptr, rows, stride_zn, slots + P, P, before, tokens, BLOCK_N, FEATURES,
                    SPLIT_K)  # fmt: skip
        u -= factor * z
    _finish_tile(u, tile_ptr, token_head_ptr, token_ptr, pieces_ptr, bound, P, P_TOKEN, FEATURES,
                 HIDDEN, BLOCK_N, HAS_BOUND, HEAD_PRECISION)  # fmt: skip


@triton.jit
def _score_frame_kernel(pieces_ptr, frames_ptr, frame_head_ptr, frame_ptr, bound,
                        P: tl.constexpr, P_TOKEN: tl.constexpr, HIDDEN: tl.constexpr,
                        HAS_BOUND: tl.constexpr):  # fmt: skip
    """One frame's score: its pieces added in their order, the mean, the head."""
    WIDTH: tl.constexpr = P - P_TOKEN
    frame = tl.program_id(0)
    begin = tl.load(frames_ptr + frame * 4)
    end = tl.load(frames_ptr + frame * 4 + 1)
    head_ptr = frame_head_ptr + tl.load(frames_ptr + frame * 4 + 2) * (
        WIDTH * WIDTH + 3 * WIDTH + 1
    )
    offs = tl.arange(0, HIDDEN)
    own = offs < WIDTH
    total = tl.zeros([HIDDEN], dtype=tl.float32)
    pieces_ptr += begin.to(tl.int64) * P + P_TOKEN
    for piece in range(end - begin):
        total += tl.load(pieces_ptr + piece * P + offs, mask=own, other=0.0)
    mean = total / tl.load(frames_ptr + frame * 4 + 3).to(tl.float32)
    hidden = _silu(mean + tl.load(head_ptr + offs, mask=own, other=0.0))
    head_ptr += WIDTH
    weights = tl.load(
        head_ptr + offs[:, None] * WIDTH + offs[None, :],
        mask=own[:, None] & own[None, :],
        other=0.0,
    )
    head_ptr += WIDTH * WIDTH
    hidden = tl.sum(weights * hidden[None, :], axis=1)
    hidden = _silu(hidden + tl.load(head_ptr + offs, mask=own, other=0.0))
    head_ptr += WIDTH
    score = tl.sum(hidden * tl.load(head_ptr + offs, mask=own, other=0.0), axis=0)
    score += tl.load(head_ptr + WIDTH)
    tl.store(frame_ptr + frame, _bounded(score, bound, HAS_BOUND))
