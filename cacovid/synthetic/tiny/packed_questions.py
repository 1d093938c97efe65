"""Many questions packed after one video: rows, masks and positions of the language stage.

No question sees another. Video tokens may be dropped; those kept stay at their positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cacovid.synthetic import world
from cacovid.synthetic.questions import Question, balanced_facts, word_question
from cacovid.synthetic.tiny.curriculum import EVERY_TYPE, LanguageStage
from cacovid.synthetic.tiny.data import Clip
from cacovid.synthetic.tiny.tokenizer import END, START


class QuestionWriter:
    """Token ids of questions and answers, in the chat template's order."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self.end = ids(END)
        self.prefix = [ids(START), ids("user")]
        self.tail = [self.end, ids(START), ids("assistant")]

    def __call__(self, questions: list[Question]) -> list[tuple[list[int], list[int]]]:
        """`(question ids up to the assistant's turn, answer ids with the end marker)` of each."""
        texts = self.tokenizer([q.text for q in questions], add_special_tokens=False).input_ids
        words = self.tokenizer.convert_tokens_to_ids([q.answer for q in questions])
        return [(t + self.tail, [w, self.end]) for t, w in zip(texts, words, strict=True)]

    def mentions(self, question: Question, text: list[int]) -> list[tuple[int, int]]:
        """`(place in the text, object)` of the last word of every name of one object.

        Args:
            question: The question.
            text: Its token ids.
        """
        found = []
        for blank, item in zip(question.blanks, question.items, strict=False):
            words = self.tokenizer.convert_tokens_to_ids(blank.split())
            size = len(words)
            begin = next(i for i in range(len(text)) if text[i : i + size] == words)
            found.append((begin + size - 1, item))
        return found


@dataclass
class Batch:
    """Packed rows: prefix, kept video tokens, newline, then the questions one after another.

    `mention_at` `[mentions, 2]`: row and place of the last word that names an object;
    `mention_of`: row and number of the object.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    kept: Tensor
    answer_at: Tensor
    answer_ids: Tensor
    answer_weight: Tensor
    question_of: list[list[tuple[Question, int]]]
    mention_at: Tensor
    mention_of: list[tuple[int, int]]


def build_batch(
    model: Any,
    writer: QuestionWriter,
    features: Tensor,
    keep: list[np.ndarray],
    questions: list[list[Question]],
    weights: list[np.ndarray] | None = None,
) -> Batch:
    """Embeds and packs a batch.

    Args:
        features: `[B, 576, D]`.
        keep: Kept video tokens of each clip, ascending.
        questions: Of each clip.
        weights: Loss weight of each question; 1 when omitted.
    """
    table = model.get_input_embeddings()
    newline = model.model.image_newline
    lead = len(writer.prefix)
    rows, positions, blocks, answers = [], [], [], []
    asked: list[list[tuple[Question, int]]] = []
    mention_at: list[tuple[int, int]] = []
    mention_of: list[tuple[int, int]] = []
    for b, group in enumerate(questions):
        written = writer(group)
        count = lead + len(keep[b]) + 1
        ids: list[int] = []
        place = [*range(lead), *(lead + keep[b]).tolist(), lead + world.CLIP_TOKENS]
        owner = [0] * count
        spot: list[tuple[Question, int]] = []
        for number, (text, answer) in enumerate(written):
            base = lead + world.CLIP_TOKENS + 1
            first = count + len(ids) + len(text) - 1
            weight = 1.0 if weights is None else float(weights[b][number])
            answers.append((b, first, answer[0], weight))
            answers.append((b, first + 1, answer[1], 0.1 * weight))
            spot.append((group[number], len(answers) - 2))
            for place_of, item in writer.mentions(group[number], text):
                mention_at.append((b, count + len(ids) + place_of))
                mention_of.append((b, item))
            ids += text + answer
            size = len(text) + len(answer)
            place += range(base, base + size)
            owner += [number + 1] * size
        asked.append(spot)
        head = table(torch.tensor(writer.prefix))
        video = features[b, torch.from_numpy(keep[b])]
        rows.append(torch.cat([head, video, newline[None], table(torch.tensor(ids))]))
        positions.append(torch.tensor(place))
        blocks.append(torch.tensor(owner))
    longest = max(len(row) for row in rows)
    pad = [longest - len(row) for row in rows]
    embeds = torch.stack([F.pad(row, (0, 0, 0, p)) for row, p in zip(rows, pad, strict=True)])
    position_ids = torch.stack([F.pad(x, (0, p)) for x, p in zip(positions, pad, strict=True)])
    block = torch.stack([F.pad(x, (0, p), value=-1) for x, p in zip(blocks, pad, strict=True)])
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    mine = block[:, :, None] == block[:, None, :]
    shared = (block == 0)[:, None, :]
    allowed = causal & (mine | shared)
    where = torch.tensor([(a, b) for a, b, _, _ in answers])
    return Batch(
        embeds,
        torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)[:, None],
        position_ids,
        torch.tensor([len(k) for k in keep]),
        where,
        torch.tensor([i for _, _, i, _ in answers]),
        torch.tensor([w for *_, w in answers]),
        asked,
        torch.tensor(mention_at, dtype=torch.int64).view(-1, 2),
        mention_of,
    )


def choose_tokens(
    rng: np.random.Generator,
    questions: list[list[Question]],
    stage: LanguageStage,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Kept tokens of each clip and the questions' weights: all, random, or evidence and others.

    One share per batch, so that rows are of like length.
    """
    total = world.CLIP_TOKENS
    mode = rng.random()
    if mode < stage.full_share:
        everything = np.arange(total)
        return [everything] * len(questions), [np.ones(len(q)) for q in questions]
    low, high = stage.others
    ratio = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    keep, weights = [], []
    for group in questions:
        chosen = rng.random(total) < ratio
        if mode > stage.full_share + stage.random_share:
            served = rng.random(len(group)) < max(stage.served, ratio)
            served[rng.integers(len(group))] = True
            for question, yes in zip(group, served, strict=True):
                if yes:
                    chosen[question.evidence] = True
        if not chosen.any():
            chosen[rng.integers(total)] = True
        share = np.array([chosen[q.evidence].mean() for q in group])
        # What cannot be answered teaches only the prior of its answers.
        weights.append(np.where(share > 0.45, 1.0, 0.15))
        keep.append(np.flatnonzero(chosen))
    return keep, weights


def draw_questions(
    rng: np.random.Generator,
    clip: Clip,
    count: int,
    types: tuple[str, ...] = EVERY_TYPE,
    multiple_choice: float = 0.5,
    held_out: bool = False,
) -> list[Question]:
    """Balanced questions on a stored clip."""
    asked = []
    for fact in balanced_facts(clip.facts, count, rng, types):
        evidence = np.unique(np.concatenate([clip.evidence[i] for i in fact.items]))
        options = bool(rng.random() < multiple_choice)
        asked.append(word_question(fact, rng, evidence, held_out, options))
    return asked
