"""Stage 2: the language model, on features computed once, many questions packed after one video.

No question sees another. Video tokens are dropped at random in most batches (original positions
are kept), so that the model tolerates pruning. Auxiliary heads tell every video token what the
answers are built from (when it is, which way its object moves, what came before): they speed the
learning of motion and order by a lot and are thrown away afterwards.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.synthetic import world
from cacovid.synthetic.questions import (
    LETTERS,
    QUESTION_TYPES,
    Question,
    balanced_facts,
    word_question,
)
from cacovid.synthetic.tiny.checkpoint import load_checkpoint, save_checkpoint
from cacovid.synthetic.tiny.data import Clip
from cacovid.synthetic.tiny.model import LATE_LAYERS, TEXT_WIDTH
from cacovid.synthetic.tiny.tokenizer import END, START

EVERY_TYPE = tuple(QUESTION_TYPES)


@dataclass(frozen=True)
class LanguageStage:
    """One step of the curriculum.

    Args:
        steps: Updates.
        types: Question types asked.
        questions: Questions on each clip.
        multiple_choice: Share of questions that carry options.
        others: Least and greatest share of the tokens beside the evidence that are kept; one
            share per batch, log-uniform.
        served: Share of a clip's questions whose evidence is kept (at least one).
        full_share, random_share: Shares of batches that keep all tokens, or that many at random
            without regard to the evidence.
        auxiliary_weight: Of the video tokens' own losses.
        mention_weight: Of the losses of the words that name an object.
        word_weight: Of the answer's word before the last layer, which then finds its letter.
        asleep: Decoder layers that are not trained yet, of `LATE_LAYERS`.
        rate: Of Muon; AdamW's is half of it. Warm-up over 50 steps, then a half cosine.
        final: The rate at the end, as a share of `rate`.
    """

    steps: int
    types: tuple[str, ...]
    questions: int
    multiple_choice: float
    others: tuple[float, float]
    served: float = 1.0
    full_share: float = 0.0
    random_share: float = 0.0
    auxiliary_weight: float = 0.0
    mention_weight: float = 0.0
    word_weight: float = 0.0
    asleep: tuple[int, ...] = LATE_LAYERS
    rate: float = 2e-3
    final: float = 1.0

    def rate_at(self, step: int) -> float:
        """The rate of an update of this stage."""
        warm = min(1.0, (step + 1) / 50)
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * warm * (self.final + (1 - self.final) * fall)


#: Two attributes must single out an object: nothing else teaches the model to bind them. The type
#: `big_colour`, which one attribute answers, waits: beside it binding took more than three times
#: as many updates.
BINDING = ("colour", "shape", "pattern")

STAGES = (
    LanguageStage(1800, BINDING, 6, 0.0, (0.02, 0.02)),
    LanguageStage(2500, BINDING, 8, 0.5, (0.01, 0.1)),
    LanguageStage(1000, EVERY_TYPE, 12, 0.4, (0.01, 0.15), auxiliary_weight=0.2),
    LanguageStage(
        2000,
        EVERY_TYPE,
        12,
        0.5,
        (0.01, 0.15),
        auxiliary_weight=0.2,
        mention_weight=0.3,
        asleep=(6,),
    ),
    LanguageStage(
        1700,
        EVERY_TYPE,
        14,
        0.5,
        (0.01, 1.0),
        served=0.6,
        full_share=0.3,
        random_share=0.15,
        auxiliary_weight=0.1,
        mention_weight=0.2,
        word_weight=0.3,
        asleep=(),
        final=0.02,
    ),
)


@dataclass
class LanguageRecipe:
    """Settings of the language model's training.

    Args:
        stages: The curriculum.
        batch: Clips of an update.
        weight_decay: Of both optimizers.
        compile: Whether the decoder goes through `torch.compile` (needs a C++ compiler).
        checkpoint_every: Steps.
        seed: Of clips, questions and dropped tokens.
    """

    stages: tuple[LanguageStage, ...] = STAGES
    batch: int = 8
    weight_decay: float = 0.05
    compile: bool = True
    checkpoint_every: int = 500
    seed: int = 0


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


def auxiliary_loss(
    heads: AuxiliaryHeads, states: tuple[Tensor, ...], keep: list[np.ndarray], clips: list[Clip]
) -> Tensor:
    """Dense losses on the video tokens' hidden states (after layers 1, 2 and 3)."""
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
    """Losses of the words that name an object, after layer 4: its look, time, way and place."""
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
    """Loss of the answer's word (not its letter) at the answer's place, before the last layer."""
    asked = [pair for row in batch.question_of for pair in row]
    words = [q.options[LETTERS.index(q.answer)] if q.options else q.answer for q, _ in asked]
    target = torch.tensor(writer.tokenizer.convert_tokens_to_ids(words))
    at = batch.answer_at[torch.tensor([number for _, number in asked])]
    weight = batch.answer_weight[torch.tensor([number for _, number in asked])]
    hidden = model.model.language_model.norm(states[-2][at[:, 0], at[:, 1]].float())
    logits = hidden @ model.get_input_embeddings().weight.T
    each = F.cross_entropy(logits, target, reduction="none")
    return (each * weight).sum() / weight.sum()


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


def forward(model: Any, batch: Batch, decoder: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits at the answers' positions `[2 * questions, vocabulary]`, and all hidden states."""
    decoder = model.model.language_model if decoder is None else decoder
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder(
            inputs_embeds=batch.embeds.to(torch.bfloat16),
            attention_mask=batch.mask.to(torch.bfloat16),
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        )
    hidden = out.last_hidden_state[batch.answer_at[:, 0], batch.answer_at[:, 1]]
    return hidden.float() @ model.get_input_embeddings().weight.T, out.hidden_states


def train_language(
    model: Any,
    tokenizer: Any,
    clips: list[Clip],
    features: Tensor,
    folder: Path,
    recipe: LanguageRecipe,
    validation: tuple[list[Clip], Tensor] | None = None,
) -> None:
    """Trains the language model and the word embeddings; resumable.

    Every stage starts from the last one's weights with fresh optimizers, and leaves
    `language-{number}.pt` in the folder: a changed stage is trained again by deleting its file
    and those of the stages after it.
    """
    writer = QuestionWriter(tokenizer)
    heads = AuxiliaryHeads()
    decoder = model.model.language_model
    if recipe.compile:
        decoder = torch.compile(decoder, dynamic=True)
    for number in range(1, len(recipe.stages) + 1):
        _train_stage(
            model, decoder, heads, writer, clips, features, folder, recipe, number, validation
        )


def _train_stage(
    model: Any,
    decoder: Any,
    heads: AuxiliaryHeads,
    writer: QuestionWriter,
    clips: list[Clip],
    features: Tensor,
    folder: Path,
    recipe: LanguageRecipe,
    number: int,
    validation: tuple[list[Clip], Tensor] | None,
) -> None:
    stage = recipe.stages[number - 1]
    for number_of, layer in enumerate(model.model.language_model.layers):
        layer.requires_grad_(number_of not in stage.asleep)
    weights = [
        *(p for p in model.model.language_model.parameters() if p.requires_grad),
        *heads.parameters(),
        model.model.image_newline,
    ]
    layers = model.model.language_model.layers
    matrices = [p for p in layers.parameters() if p.ndim == 2 and p.requires_grad]
    optimizers = _Optimizers(weights, matrices, recipe.weight_decay)
    path = folder / f"language-{number}.pt"
    modules = {"model": model, "heads": heads}
    start = load_checkpoint(path, modules, optimizers)
    began = time.monotonic()
    for step in range(start, stage.steps):
        optimizers.set_rate(stage.rate_at(step))
        rng = np.random.default_rng([recipe.seed, 2, number, step])
        chosen = rng.integers(0, len(clips), recipe.batch)
        group = [clips[i] for i in chosen]
        asked = [
            draw_questions(rng, clip, stage.questions, stage.types, stage.multiple_choice)
            for clip in group
        ]
        keep, share = choose_tokens(rng, asked, stage)
        batch = build_batch(model, writer, features[chosen].float(), keep, asked, share)
        logits, states = forward(model, batch, decoder)
        each = F.cross_entropy(logits, batch.answer_ids, reduction="none")
        loss = (each * batch.answer_weight).sum() / batch.answer_weight.sum()
        told = f"answer {loss.item():.3f}"
        if stage.auxiliary_weight:
            aux = auxiliary_loss(heads, states, keep, group)
            told += f" auxiliary {aux.item():.3f}"
            loss = loss + stage.auxiliary_weight * aux
        if stage.word_weight:
            loss = loss + stage.word_weight * word_loss(model, writer, states, batch)
        if stage.mention_weight:
            named = mention_loss(heads, states, batch, group)
            told += f" mentions {named.item():.3f}"
            loss = loss + stage.mention_weight * named
        optimizers.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizers.step()
        done = step + 1
        if done % 100 == 0:
            spent = time.monotonic() - began
            print(f"stage {number} {done}/{stage.steps} {spent:.0f}s {told}", flush=True)
        if done % recipe.checkpoint_every == 0 or done == stage.steps:
            save_checkpoint(path, done, modules, optimizers)
            if validation is not None:
                print(describe_accuracy(accuracy_by_type(model, writer, *validation)), flush=True)


class _Optimizers:
    """Muon for the decoder's matrices, AdamW for all else (embeddings, norms, biases, heads).

    Muon reached the same accuracy in about 0.6 of AdamW's updates while binding was learned
    (one run of each).
    """

    def __init__(
        self, weights: list[nn.Parameter], matrices: list[nn.Parameter], decay: float
    ) -> None:
        by_muon = {id(p) for p in matrices}
        rest = [p for p in weights if id(p) not in by_muon]
        self.muon = torch.optim.Muon(
            matrices, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(rest, weight_decay=decay, betas=(0.9, 0.98))

    def set_rate(self, rate: float) -> None:
        for optimizer, factor in ((self.muon, 1.0), (self.adamw, 0.5)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate

    def zero_grad(self) -> None:
        self.muon.zero_grad(set_to_none=True)
        self.adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


@torch.no_grad()
def accuracy_by_type(
    model: Any, writer: QuestionWriter, clips: list[Clip], features: Tensor, count: int = 64
) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each type, uncompressed, on stored clips (first word)."""
    model.eval()
    tally: dict[str, list[int]] = {}
    for begin in range(0, min(count, len(clips)), 8):
        part = clips[begin : begin + 8]
        asked = [
            draw_questions(np.random.default_rng([7, begin + i]), c, 20) for i, c in enumerate(part)
        ]
        keep = [np.arange(world.CLIP_TOKENS)] * len(part)
        batch = build_batch(model, writer, features[begin : begin + len(part)].float(), keep, asked)
        right = forward(model, batch)[0].argmax(dim=1) == batch.answer_ids
        for row in batch.question_of:
            for question, at in row:
                name = question.type + ("/letter" if question.answer in LETTERS else "")
                entry = tally.setdefault(name, [0, 0])
                entry[0] += int(right[at])
                entry[1] += 1
    model.train()
    return {name: (right, count) for name, (right, count) in sorted(tally.items())}


def describe_accuracy(tally: dict[str, tuple[int, int]]) -> str:
    """One line: accuracy in all and of each type."""
    right = sum(r for r, _ in tally.values())
    count = sum(n for _, n in tally.values())
    return f"  accuracy {right / count:.3f} | " + " ".join(
        f"{name} {r / n:.2f}" for name, (r, n) in tally.items()
    )
