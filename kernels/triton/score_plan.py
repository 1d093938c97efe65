"""Which rows a program of `score` takes: tables made on the host from integers alone."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

#: Of each packed video: frames, tokens of a frame, number of its fold.
Sizes = tuple[tuple[int, int, int], ...]

#: The columns of `tiles`.
TILE = (
    "begin", "end", "fold", "begin of the video", "tokens of a frame", "first piece",
    "slots (H*Q) of the fold", "its first row of the values", "its first row of the columns",
)  # fmt: skip


def tile_tables(
    sizes: Sizes, slots: tuple[int, ...], extra: int, block: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """The tables `tiles` and `frames`, and the number of pieces.

    Args:
        sizes: Frames, tokens of a frame and fold of each packed video.
        slots: `H*Q` of each fold; where keys are not folded, for the first kernel, which reads no
            values, `H*d`.
        extra: Columns of a fold beside these.
        block: Rows of a tile.
        device: Where the tables are to stand.

    Returns:
        `tiles [T, 9]` int32, as `TILE` says; `frames [F, 4]` int32: first piece, end of the
        pieces, fold, tokens of the frame; the number of pieces.
    """
    key = (sizes, slots, extra, block, device)
    return _held(key, _tile_tables(*key))


def chunk_tables(
    sizes: Sizes, folds: int, rows: int, device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    """Chunks of rows for the weight gradient, fold after fold.

    Args:
        sizes: Frames, tokens of a frame and fold of each packed video.
        folds: Their number.
        rows: Most rows of a chunk.
        device: Where the table is to stand.

    Returns:
        `chunks [S, 2]` int32: begin and end; and each fold's number of chunks.
    """
    key = (sizes, folds, rows, device)
    return _held(key, _chunk_tables(*key))


#: Tables that a CUDA graph reads: it holds their addresses alone, and a cache forgets.
_captured: dict[Any, Any] = {}


def _held(key: tuple[Any, ...], tables: Any) -> Any:
    """`tables`, kept for good where a graph is being recorded."""
    if key[-1].type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[key] = tables
    return tables


@lru_cache(maxsize=64)
def _tile_tables(
    sizes: Sizes, slots: tuple[int, ...], extra: int, block: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    first_slot = list(accumulate(slots, initial=0))
    tiles: list[tuple[int, ...]] = []
    frames: list[tuple[int, ...]] = []
    pieces = row = 0
    for t, n, fold in sizes:
        count = t * n
        own = (slots[fold], first_slot[fold], first_slot[fold] + fold * extra)
        # A piece begins where a tile or a frame does.
        starts = sorted({*range(0, count, block), *range(0, count, n)})
        for begin in range(0, count, block):
            end = min(begin + block, count)
            first = pieces + bisect_left(starts, begin)
            tiles.append((row + begin, row + end, fold, row, n, first, *own))
        for begin in range(0, count, n):
            first, last = bisect_left(starts, begin), bisect_left(starts, begin + n)
            frames.append((pieces + first, pieces + last, fold, n))
        pieces += len(starts)
        row += count
    return _table(tiles, device), _table(frames, device), pieces


@lru_cache(maxsize=64)
def _chunk_tables(
    sizes: Sizes, folds: int, rows: int, device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    # Videos of one fold that stand side by side are one segment.
    segments: list[list[int]] = []
    row = 0
    for t, n, fold in sizes:
        if segments and segments[-1][0] == fold:
            segments[-1][2] = row + t * n
        else:
            segments.append([fold, row, row + t * n])
        row += t * n
    chunks: list[tuple[int, ...]] = []
    counts = []
    for fold in range(folds):
        before = len(chunks)
        for own, begin, end in segments:
            if own == fold:
                chunks += [(b, min(b + rows, end)) for b in range(begin, end, rows)]
        counts.append(len(chunks) - before)
    return _table(chunks, device), tuple(counts)


def _table(rows: list[tuple[int, ...]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).to(device)
