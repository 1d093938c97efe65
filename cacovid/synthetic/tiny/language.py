"""Stage 2: the language model, on features computed once, many questions packed after one video.

Video tokens are dropped at random in most batches (original positions are kept), so that the
model tolerates pruning.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.synthetic import world
from cacovid.synthetic.questions import LETTERS
from cacovid.synthetic.tiny.auxiliary import (
    AuxiliaryHeads,
    auxiliary_loss,
    mention_loss,
    word_loss,
)
from cacovid.synthetic.tiny.checkpoint import load_checkpoint, save_checkpoint
from cacovid.synthetic.tiny.curriculum import LanguageRecipe
from cacovid.synthetic.tiny.data import Clip
from cacovid.synthetic.tiny.optimizers import Optimizers
from cacovid.synthetic.tiny.packed_questions import (
    Batch,
    QuestionWriter,
    build_batch,
    choose_tokens,
    draw_questions,
)


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
    optimizers = Optimizers(weights, matrices, recipe.weight_decay)
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
