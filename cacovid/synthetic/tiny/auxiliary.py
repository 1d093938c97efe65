"""Auxiliary losses of the language stage, thrown away after it.

Every video token is told what the answers are built from (when it is, which way its object moves,
what came before), and so are the words that name an object: that speeds the learning of motion
and order by a lot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.synthetic import world
from cacovid.synthetic.questions import LETTERS
from cacovid.synthetic.tiny.data import Clip
from cacovid.synthetic.tiny.model import TEXT_WIDTH
from cacovid.synthetic.tiny.packed_questions import Batch, QuestionWriter

#: Classes of what a mention is told of its object: columns 0 to 5 of `Clip.items`, and the place.
MENTION_SIZES = (
    len(world.COLOUR_NAMES),
    len(world.SHAPES),
    len(world.PATTERNS),
    world.CLIP_FRAMES,
    world.CLIP_FRAMES + 1,
    len(world.DIRECTIONS),
    len(world.PLACES),
)


class AuxiliaryHeads(nn.Module):
    """What video tokens, and words that name an object, are told after a layer that can know it."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(TEXT_WIDTH, world.CLIP_FRAMES)
        self.age = nn.Linear(TEXT_WIDTH, 4)
        self.direction = nn.Linear(TEXT_WIDTH, len(world.DIRECTIONS))
        self.previous = nn.Linear(TEXT_WIDTH, len(world.COLOUR_NAMES) + 1)
        self.mentions = nn.ModuleList(nn.Linear(TEXT_WIDTH, size) for size in MENTION_SIZES)


def auxiliary_loss(
    heads: AuxiliaryHeads, states: tuple[Tensor, ...], keep: list[np.ndarray], clips: list[Clip]
) -> Tensor:
    """Dense losses on the video tokens' hidden states `[B, S, D]` (after layers 1, 2 and 3)."""
    lead = 2
    early, middle, late, frame, age, direction, previous = [], [], [], [], [], [], []
    for b, (tokens, clip) in enumerate(zip(keep, clips, strict=True)):
        span = slice(lead, lead + len(tokens))
        early.append(states[1][b, span])
        middle.append(states[2][b, span])
        late.append(states[3][b, span])
        at = tokens // world.CELLS**2
        owner = clip.owner[tokens]
        row = clip.items[owner]
        none = owner < 0
        since = at - row[:, 3]
        frame.append(at)
        age.append(np.where(none, -100, np.minimum(since, 3)))
        direction.append(np.where(none | (since == 0) | (row[:, 5] < 0), -100, row[:, 5]))
        previous.append(np.where(none | (row[:, 7] == 0), -100, row[:, 6] + 1))

    def loss(head: nn.Linear, x: list[Tensor], truth: list[np.ndarray]) -> Tensor:
        labels = torch.from_numpy(np.concatenate(truth).astype(np.int64))
        logits = head(torch.cat(x).float())
        total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)

    return (
        0.3 * loss(heads.time, early, frame)
        + 0.5 * loss(heads.age, middle, age)
        + loss(heads.direction, late, direction)
        + 0.5 * loss(heads.previous, late, previous)
    )


def place_of(clip: Clip, item: int) -> int:
    """Quarter of the frame (an index of `world.PLACES`) that an object's centre is in, on average.

    -100 where no token shows it.
    """
    tokens = np.flatnonzero(clip.owner == item)
    if not len(tokens):
        return -100
    cell = tokens % world.CELLS**2
    cells = np.stack([cell % world.CELLS, cell // world.CELLS], axis=1)
    x, y = (cells + 0.5 + clip.offset[tokens]).mean(axis=0) > world.CELLS / 2
    return world.PLACES.index(("bottom" if y else "top") + ("right" if x else "left"))


def mention_loss(
    heads: AuxiliaryHeads, states: tuple[Tensor, ...], batch: Batch, clips: list[Clip]
) -> Tensor:
    """Losses of the words that name an object, by the states `[B, S, D]` after layer 4: its look,
    time, way and place."""
    if not len(batch.mention_at):
        return states[0].sum() * 0.0
    known = [(*clips[b].items[item][:6], place_of(clips[b], item)) for b, item in batch.mention_of]
    rows = np.array(known, dtype=np.int64)
    labels = torch.from_numpy(rows)
    row, place = batch.mention_at.unbind(1)
    total = states[0].new_zeros((), dtype=torch.float32)
    for column, head in enumerate(heads.mentions):
        state = states[4][row, place].float()
        truth = labels[:, column].where(labels[:, column] >= 0, torch.tensor(-100))
        logits = head(state)
        each = F.cross_entropy(logits, truth, ignore_index=-100, reduction="sum")
        total = total + each / (truth >= 0).sum().clamp(min=1)
    return total


def word_loss(
    model: Any, writer: QuestionWriter, states: tuple[Tensor, ...], batch: Batch
) -> Tensor:
    """Loss of the answer's word (not its letter) at the answer's place, by the states `[B, S, D]`
    before the last layer."""
    asked = [pair for row in batch.question_of for pair in row]
    words = [q.options[LETTERS.index(q.answer)] if q.options else q.answer for q, _ in asked]
    target = torch.tensor(writer.tokenizer.convert_tokens_to_ids(words))
    at = batch.answer_at[torch.tensor([number for _, number in asked])]
    weight = batch.answer_weight[torch.tensor([number for _, number in asked])]
    hidden = model.model.language_model.norm(states[-2][at[:, 0], at[:, 1]].float())
    logits = hidden @ model.get_input_embeddings().weight.T
    each = F.cross_entropy(logits, target, reduction="none")
    return (each * weight).sum() / weight.sum()
