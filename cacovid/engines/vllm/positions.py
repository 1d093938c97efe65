"""Positions of pruned videos in a Qwen prompt (M-RoPE), and how they come into vLLM's tensor.

All that stands in a prompt keeps the position it has in the uncompressed prompt. Which tokens are
kept is not known when a request's positions are first written, but how far a video reaches is: so
the text gets its right positions at once, also where the video itself is read from the prefix cache
and never looked at again. The kept tokens' positions come with their embeddings, one chunk of the
prefill after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.engines.vllm.integers import DIGITS, from_digits, to_digits

#: Of each row of a video or image: time, height, width from the medium's beginning; the row's
#: number in the medium; rows before its first placeholder.
COLUMNS = 5
#: Columns behind the embeddings.
WIDTH = COLUMNS * DIGITS


def grid_positions(size: Sequence[int], seconds_per_step: float = 1.0) -> Tensor:
    """Positions of an image's or a video's tokens from its beginning (Qwen2-VL, Qwen2.5-VL).

    Args:
        size: `(t, h, w)` after merging.
        seconds_per_step: Positions between two frames, rounded down frame by frame.

    Returns:
        `[3, N]` int64: time, height, width.
    """
    t, h, w = size
    time = (torch.arange(t) * seconds_per_step).long()
    axes = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack(axes).reshape(3, -1)


def extent(positions: Tensor) -> int:
    """How many positions a medium takes: the text behind it goes on there.

    Args:
        positions: `[3, N]` from its beginning.
    """
    return int(positions.max()) + 1


@dataclass(frozen=True)
class FramePositions:
    """Positions of a Qwen3-VL video, whose frames have a timestamp and markers around them.

    Args:
        video: `[3, N]` int64 of the tokens, from the video's beginning.
        text: `[3, M]` int64 of timestamps and markers.
        extent: Positions of all.
    """

    video: Tensor
    text: Tensor
    extent: int


def frame_positions(size: Sequence[int], leads: Sequence[int]) -> FramePositions:
    """Positions where each frame is an image of its own, behind its timestamp.

    Args:
        size: `(t, h, w)` after merging.
        leads: Text tokens before each frame's tokens, its begin marker among them; one end marker
            follows.
    """
    _, h, w = size
    frame = grid_positions((1, h, w))
    video, text, at = [], [], 0
    for lead in leads:
        text.append(torch.arange(at, at + lead))
        at += lead
        video.append(frame + at)
        at += max(h, w)
        text.append(torch.tensor([at]))
        at += 1
    return FramePositions(torch.cat(video, dim=1), torch.cat(text).expand(3, -1), at)


def columns(positions: Tensor, lead: int) -> Tensor:
    """What travels behind the embeddings of a whole medium.

    Args:
        positions: `[3, R]` int64 of its rows.
        lead: Rows before the first placeholder in the prompt's ids.

    Returns:
        `[R, WIDTH]` int64 in [0, 256): exact in every dtype of models.
    """
    rows = positions.shape[1]
    numbers = torch.arange(rows, device=positions.device)
    values = torch.stack((*positions, numbers, torch.full_like(numbers, lead)), dim=1)
    return to_digits(values)


def initial_positions(length: int, media: Sequence[tuple[int, int, int]]) -> tuple[Tensor, int]:
    """Positions of a prompt before its videos are looked at.

    Args:
        length: Tokens of the shortened prompt.
        media: `(offset, rows, extent)` of each image and video, by offset.

    Returns:
        `[3, length]` int64, right for the text, a medium's rows all at its beginning; and the
        next token's position less `length`.
    """
    parts, done, at = [], 0, 0
    for offset, rows, reach in media:
        parts.append(torch.arange(at, at + offset - done))
        at += offset - done
        parts.append(torch.full((rows,), at))
        at, done = at + reach, offset + rows
    parts.append(torch.arange(at, at + length - done))
    at += length - done
    return torch.cat(parts).expand(3, -1).contiguous(), at - length


def write_positions(
    positions: Tensor,
    ids: Sequence[int],
    chunks: Sequence[Tensor],
    computed: int,
    media_ids: Collection[int],
) -> tuple[Tensor, int]:
    """Puts the positions of one prefill chunk's images and videos into a prompt's.

    Args:
        positions: `[3, length]` from `initial_positions`, perhaps written to before.
        ids: The prompt's ids, `length` of them.
        chunks: The columns `[R, WIDTH]` of each medium's rows in this chunk, in order.
        computed: Tokens before this chunk.
        media_ids: Ids of placeholders.

    Returns:
        The positions, and the next token's position less `length`.
    """
    out = positions.clone()
    length = out.shape[1]
    cursor = computed
    for chunk in chunks:
        values = from_digits(chunk)
        if len(values) == 0:
            continue
        row, lead = values[0, 3:].tolist()
        if row > 0:  # the rest of a medium whose beginning was computed before
            begin = cursor
        else:
            first = (n for n in itertools.count(cursor) if ids[n] in media_ids)
            begin = next(first) - lead
        # The text before it, which never moves.
        start = begin - row
        base = out[0, start - 1] + 1 if start > 0 else 0
        out[:, begin : begin + len(values)] = (values[:, :3].T + base).to(out)
        cursor = begin + len(values)
    return out, int(out.max()) + 1 - length
