"""Launchers of `score`: the scores, and the gradient of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from cacovid.kernels import configurations
from cacovid.kernels.score_backward_kernels import _score_dw_kernel
from cacovid.kernels.score_kernels import (
    _score_finish_kernel,
    _score_frame_kernel,
    _score_fwd_kernel,
    _score_project_kernel,
)
from cacovid.kernels.score_plan import Sizes, chunk_tables, tile_tables

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # triton before 3.4: pointers serve
    TensorDescriptor = None

#: Of the matrix products, by the video's dtype. Three TF32 products keep float32's accuracy to
#: 2^-22; 16-bit operands are multiplied exactly whatever is asked for, and the small products of
#: the heads read float32 as TF32, which has at least the bits of the video.
PRECISIONS = {torch.float32: "tf32x3", torch.float16: "tf32", torch.bfloat16: "tf32"}

_INTERPRETED = not isinstance(_score_fwd_kernel, triton.runtime.JITFunction)


@dataclass(frozen=True)
class ScoreForward:
    """What a forward pass leaves.

    Args:
        token: `[N]` float32.
        frame: `[F]` float32.
        z: `[N, C]` float32, where it was asked for: `X W` before the rows' factors, `C` the most
            columns of a fold. Columns that a video's fold does not have are not written.
        squares: `[N]` float32, the rows' sums of squares, likewise.
    """

    token: Tensor
    frame: Tensor
    z: Tensor | None = None
    squares: Tensor | None = None


def score_fwd_triton(
    video: Tensor,
    columns: Tensor,
    values: Tensor,
    token_head: Tensor,
    frame_head: Tensor,
    sizes: Sequence[int],
    slots: Sequence[int],
    token_features: int,
    heads: int,
    inter_frame: bool,
    eps: float,
    score_bound: float | None,
    keys: Tensor | None = None,
    *,
    keep: bool = False,
    config: configurations.Config | None = None,
) -> ScoreForward:
    """Token and frame scores from one reading of the video (`cacovid.reference.score`).

    One kernel, and a tiny one for the frames. With inter-frame columns, or where few tokens make it
    worth to split `D`, the first kernel writes `X W` and another makes the scores of it, so that a
    row finds the row of the frame before, and parts of `D` are added in their order.
    Deterministic for a configuration; does not wait for the device once the tables of a grid are
    there.

    Args:
        video: `[N, D]` float32, float16 or bfloat16.
        columns: `[C, D]`, the columns of each fold as rows, fold after fold. Rounded to the
            video's dtype; given in it, nothing is copied.
        values: `[S, P]` float32, fold after fold.
        token_head: `[V, P_t*P_t + 3*P_t + 1]` float32, the flat weights of each fold's head.
        frame_head: `[V, P_f*P_f + 3*P_f + 1]` float32.
        sizes: Three integers for each video: frames, tokens of a frame, number of its fold.
        slots: `H*Q` of each fold.
        token_features: `P_t`.
        heads: `H`.
        inter_frame: Whether there are inter-frame columns.
        eps: The RMSNorm's epsilon.
        score_bound: Scores are `bound * tanh(score / bound)`; None: unbounded.
        keys: `[S, d]` float32, fold after fold, of columns that begin with `H*d` of the queries;
            None: the keys are folded into the columns. The logits are then a small product between
            the two kernels.
        keep: Whether to keep `X W` and the squares, for a gradient; without keys.
        config: Properties of the launches; None: those of `kernels/configs`.

    Raises:
        ValueError: for `keep` with `keys`.
    """
    tokens, width = video.shape
    device, features = video.device, values.shape[1]
    extra = features * (2 if inter_frame else 1)
    most = max(slots)
    # Columns of each fold that the logits are, or are made of.
    attending = tuple(slots) if keys is None else (heads * keys.shape[1],) * len(slots)
    read_most = max(attending)
    if keep and keys is not None:
        raise ValueError("keys are given; what is kept for a gradient is of folded columns")
    # With keys the first kernel holds the queries and the second the slots: an entry for both.
    held = most if keys is None else most + read_most
    config = config or _configuration(video, held, extra, inter_frame or keys is not None)
    fused = bool(config["FUSED"])
    video = _rows(video)
    columns = columns.to(video.dtype).contiguous()
    values, token_head, frame_head = (t.contiguous() for t in (values, token_head, frame_head))
    videos = _triples(sizes)
    tiles, frames, pieces = tile_tables(videos, attending, extra, config["BLOCK_N"], device)
    finish = tiles
    if not fused:
        finish, frames, pieces = tile_tables(
            videos, tuple(slots), extra, config["FINISH_N"], device
        )

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    token, frame, sums = empty(tokens), empty(len(frames)), empty(pieces, features)
    split = 1 if fused else config["SPLIT_K"]
    stored = split if keep or not fused else 0
    z, squares = empty(stored, tokens, read_most + extra), empty(stored, tokens)
    bound = 1.0 if score_bound is None else score_bound
    steps = triton.cdiv(triton.cdiv(width, config["BLOCK_K"]), split)
    shape: dict[str, Any] = {
        "HEADS": heads,
        "P": features,
        "P_TOKEN": token_features,
        "FEATURES": _padded(features),
        "HIDDEN": _padded(token_features),
        "HAS_BOUND": score_bound is not None,
        "HEAD_PRECISION": PRECISIONS[video.dtype],
    }
    read: dict[str, Any] = {
        "BLOCK_N": config["BLOCK_N"],
        "BLOCK_K": config["BLOCK_K"],
        "STEPS": steps,
        "EVEN": width == steps * split * config["BLOCK_K"],
        "DESCRIPTORS": _descriptors(video, columns, config),
        "WIDEN": _INTERPRETED,
        "PRECISION": PRECISIONS[video.dtype],
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
        "enable_fp_fusion": True,
    }
    if fused:
        inner = _padded(most)
        joined = min(slots) == most == inner == shape["FEATURES"]
        blocks = (inner * (2 if joined else 1), shape["FEATURES"])
        x, w, w_features = _operands(video, columns, blocks, read)
        _score_fwd_kernel[(len(tiles),)](
            x, w, w_features, tiles, values, token_head, token, sums, z, squares, tokens, width,
            len(columns), video.stride(0), most + extra, eps, bound,
            WIDTH=inner, JOINED=joined, STORE_Z=keep, **shape, **read,
        )  # fmt: skip
    else:
        x, w = _operands(video, columns, (config["BLOCK_C"],), read)
        blocks_c = triton.cdiv(read_most + extra, config["BLOCK_C"])
        _score_project_kernel[(blocks_c, len(tiles), split)](
            x, w, tiles, z, squares, tokens, width, len(columns), video.stride(0),
            read_most + extra, EXTRA=extra, BLOCK_C=config["BLOCK_C"], **read,
        )  # fmt: skip
        if keys is not None:
            z, squares, split = _with_logits(z, keys, videos, slots, heads), squares.sum(0), 1
        _score_finish_kernel[(len(finish),)](
            z, squares, finish, values, token_head, token, sums, tokens, width, most + extra, eps,
            bound, SLOTS=_padded(most // heads), INTER_FRAME=inter_frame,
            BLOCK_N=config["FINISH_N"], SPLIT_K=split, **shape,
            num_warps=config["FINISH_WARPS"], num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    _score_frame_kernel[(len(frames),)](
        sums, frames, frame_head, frame, bound, P=features, P_TOKEN=token_features,
        HIDDEN=_padded(features - token_features), HAS_BOUND=score_bound is not None,
        num_warps=1, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    if not keep:
        return ScoreForward(token, frame)
    return ScoreForward(token, frame, z.sum(dim=0), squares.sum(dim=0))


def score_dw_triton(
    video: Tensor,
    dz: Tensor,
    sizes: Sequence[int],
    folds: int,
    *,
    config: configurations.Config | None = None,
) -> Tensor:
    """The gradient of the columns, `dzᵀ X` for each fold: one more reading of the video.

    Deterministic: chunks of rows are summed apart, then in their order.

    Args:
        video: `[N, D]` float32, float16 or bfloat16.
        dz: `[N, C]` float32, the gradient of `X W` before the rows' factors; rounded to the
            video's dtype (float16: relative to its largest entry).
        sizes: Three integers for each video: frames, tokens of a frame, number of its fold.
        folds: `V`.
        config: Properties of the launch; None: those of `kernels/configs`.

    Returns:
        `[V, C, D]` float32.
    """
    tokens, width = video.shape
    columns = dz.shape[1]
    config = config or configurations.find("score_dw", video.device, video.dtype, columns, tokens)
    video = _rows(video)
    scale = None
    if video.dtype == torch.float16:
        # Gradients of a mean over many tokens vanish in float16; a factor, found without waiting
        # for the device, brings the largest to 1.
        scale = dz.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        dz = dz / scale
    dz = dz.to(video.dtype).contiguous()
    blocks = triton.cdiv(width, config["BLOCK_D"])
    # As many chunks as give the wanted number of programs, each of whole blocks of rows.
    wanted = max(1, config["PROGRAMS"] // blocks)
    rows = triton.cdiv(triton.cdiv(tokens, wanted), config["BLOCK_N"]) * config["BLOCK_N"]
    chunks, counts = chunk_tables(_triples(sizes), folds, rows, video.device)
    block_c = min(_padded(columns), config["BLOCK_C"])
    parts = torch.empty((len(chunks), columns, width), dtype=torch.float32, device=video.device)
    _score_dw_kernel[(triton.cdiv(columns, block_c), blocks, len(chunks))](
        video, dz, chunks, parts, width, columns, video.stride(0),
        BLOCK_N=config["BLOCK_N"], BLOCK_D=config["BLOCK_D"], BLOCK_C=block_c,
        WIDEN=_INTERPRETED, PRECISION=PRECISIONS[video.dtype], num_warps=config["num_warps"],
        num_stages=config["num_stages"], enable_fp_fusion=True,
    )  # fmt: skip
    total = torch.stack([part.sum(dim=0) for part in parts.split(counts)])
    return total if scale is None else total * scale


def _with_logits(
    z: Tensor, keys: Tensor, videos: Sizes, slots: Sequence[int], heads: int
) -> Tensor:
    """`X W` with the logits of the slots in the place of the queries, as folded columns give it.

    Args:
        z: `[parts of D, N, H*d + extra]`.
        keys: `[S, d]`.
        videos: Frames, tokens of a frame and fold of each.
        slots: `H*Q` of each fold.
        heads: `H`.
    """
    whole = z[0] if len(z) == 1 else z.sum(dim=0)
    queries, rest = whole.split([heads * keys.shape[1], z.shape[2] - heads * keys.shape[1]], dim=1)
    out = whole.new_empty(len(whole), max(slots) + rest.shape[1])
    own = [part.unflatten(0, (heads, -1)).transpose(1, 2) for part in keys.split(list(slots))]
    row = 0
    with torch.autocast(z.device.type, enabled=False):
        for t, n, fold in videos:
            rows, count = slice(row, row + t * n), slots[fold]
            query = queries[rows].unflatten(1, (heads, -1)).transpose(0, 1)
            logits = torch.bmm(query, own[fold]).transpose(0, 1)
            out[rows, :count].unflatten(1, (heads, -1)).copy_(logits)
            out[rows, count : count + rest.shape[1]] = rest[rows]
            row += t * n
    return out[None]


def _configuration(video: Tensor, slots: int, extra: int, apart: bool) -> configurations.Config:
    """Of the fused form where it is to serve, else of the two kernels (`apart`: in any case)."""
    tokens = video.shape[0]
    if not apart:
        # What a program holds are the widths of its blocks: 80 slots and 40 features take 192.
        held = _padded(slots) + _padded(extra)
        config = configurations.find("score_fwd", video.device, video.dtype, held, tokens)
        if config["FUSED"]:
            return config
    return configurations.find("score_project", video.device, video.dtype, slots + extra, tokens)


def _triples(sizes: Sequence[int]) -> Sizes:
    return tuple(zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True))


def _padded(count: int) -> int:
    """The width of a block for `count` columns: a power of two that a matrix product takes."""
    return max(16, triton.next_power_of_2(count))


def _rows(video: Tensor) -> Tensor:
    """Rows that are contiguous in themselves; a larger step from row to row is read as it is."""
    return video if video.stride(1) == 1 or video.shape[1] == 1 else video.contiguous()


def _descriptors(video: Tensor, columns: Tensor, config: configurations.Config) -> bool:
    """Whether tensor descriptors serve: wished for, to be had, and both matrices are aligned."""
    aligned = all(
        t.data_ptr() % 16 == 0 and (t.stride(0) * t.element_size()) % 16 == 0
        for t in (video, columns)
    )
    return bool(config["DESCRIPTORS"]) and TensorDescriptor is not None and aligned


def _operands(
    video: Tensor, columns: Tensor, blocks: Sequence[int], read: dict[str, Any]
) -> list[Any]:
    """The video, and the columns once for each height of `blocks`."""
    if not read["DESCRIPTORS"]:
        return [video, *(columns for _ in blocks)]
    shapes = [(video, read["BLOCK_N"]), *((columns, block) for block in blocks)]
    return [TensorDescriptor.from_tensor(t, [block, read["BLOCK_K"]]) for t, block in shapes]
