"""Several samples' prompts as one packed prompt; packed prompts as a decoder's padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Prompt, Scores


def pack_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """One packed prompt of several, so that a policy scores them in one call.

    Args:
        prompts: At least one; of one hidden size and one kind of position ids. Extras are left out.

    Raises:
        InvalidInputError: if there is none.
    """
    if not prompts:
        raise InvalidInputError("no prompt was given to pack; expected at least one")
    if len(prompts) == 1:
        return prompts[0]
    offsets, questions = [0], [0]
    video_index, question_index = [], []
    for prompt in prompts:
        begin = offsets[-1]
        video_index.append(prompt.video_index + begin)
        own = prompt.prompt_offsets or (0, prompt.embeds.shape[0])
        offsets += [begin + end for end in own[1:]]
        for place in _questions(prompt):
            question_index.append(place + begin)
            questions.append(questions[-1] + len(place))
    return Prompt(
        embeds=torch.cat([p.embeds for p in prompts]),
        position_ids=torch.cat([p.position_ids for p in prompts], dim=-1),
        video_index=torch.cat(video_index),
        question_index=torch.cat(question_index),
        grid=Grid([size for p in prompts for size in p.grid.sizes]),
        prompt_offsets=tuple(offsets),
        question_offsets=tuple(questions),
    )


def _questions(prompt: Prompt) -> list[Tensor]:
    """The question's places for each video of a prompt."""
    offsets = prompt.question_offsets
    if offsets is None:
        return [prompt.question_index] * prompt.grid.num_videos
    return [prompt.question_index[a:b] for a, b in pairwise(offsets)]


def split_scores(scores: Scores, prompts: Sequence[Prompt]) -> list[Scores]:
    """The scores of a packed prompt, sample by sample."""
    token = scores.token.split([p.grid.num_tokens for p in prompts])
    if scores.frame is None:
        return [Scores(t) for t in token]
    frame = scores.frame.split([p.grid.num_frames for p in prompts])
    return [Scores(t, f) for t, f in zip(token, frame, strict=True)]


@dataclass(frozen=True)
class PaddedRows:
    """What a decoder reads: rows padded on the left.

    Args:
        embeds: `[G, W, D]`, or wider with deepstack features (`cacovid.models.deepstack`).
        attention_mask: `[G, W]` int64.
        position_ids: `[G, W]`, or `[4, G, W]` int64: a text row without gaps, by which decoders
            tell packed sequences apart, then time, height and width.
    """

    embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def pad_rows(prompt: Prompt, suffix: Tensor | None = None) -> PaddedRows:
    """Writes packed prompts down as rows padded on the left.

    Args:
        prompt: Packed prompts.
        suffix: `[A, D]` embeddings that follow every prompt (a teacher-forced answer), at the
            positions after its last one.
    """
    offsets = prompt.prompt_offsets or (0, prompt.embeds.shape[0])
    return pad_packed(prompt.embeds, prompt.position_ids, offsets, suffix)


def pad_packed(
    packed: Tensor, position_ids: Tensor, offsets: Sequence[int], suffix: Tensor | None = None
) -> PaddedRows:
    """Writes packed rows down as a batch padded on the left.

    Args:
        packed: `[S, D]` embeddings, row after row.
        position_ids: `[S]` or `[3, S]` int64.
        offsets: Where each row begins, and `S` at the end (host integers).
        suffix: As in `pad_rows`.
    """
    lengths = torch.tensor([end - begin for begin, end in pairwise(offsets)])
    rows, width = len(lengths), int(lengths.max())
    extra = 0 if suffix is None else suffix.shape[0]
    device = packed.device
    row = torch.repeat_interleave(torch.arange(rows), lengths)
    begin = torch.tensor(offsets[:-1])
    place = torch.arange(int(lengths.sum())) - begin[row] + (width - lengths)[row]
    flat = (row * (width + extra) + place).to(device)
    total = rows * (width + extra)
    embeds = packed.new_zeros((total, packed.shape[1])).index_copy(0, flat, packed)
    mask = torch.zeros(total, dtype=torch.int64, device=device).index_fill_(0, flat, 1)
    ids = position_ids
    positions = ids.new_zeros((*ids.shape[:-1], total)).index_copy(-1, flat, ids)
    embeds = embeds.view(rows, width + extra, -1)
    mask = mask.view(rows, width + extra)
    positions = positions.view(*ids.shape[:-1], rows, width + extra)
    if suffix is not None:
        embeds[:, width:] = suffix.to(embeds)
        mask[:, width:] = 1
        after = torch.arange(1, extra + 1, device=device)
        positions[..., width:] = positions[..., width - 1 : width] + after
    if positions.dim() == 3:
        counted = (mask.cumsum(-1) - 1).clamp_(min=0)
        positions = torch.cat((counted[None], positions))
    return PaddedRows(embeds, mask, positions)
