"""Greedy answers of padded prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cacovid.models import deepstack
from cacovid.models.finite import FiniteLogits, check_answers
from cacovid.train.packing import PaddedRows


def decode_greedily(
    model: Any,
    tokenizer: Any,
    rows: PaddedRows,
    max_new_tokens: int,
    samples: Sequence[str] | None = None,
) -> list[str]:
    """The model's greedy continuation of every row, without special tokens.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: `G` prompts, padded on the left.
        max_new_tokens: The longest answer, in tokens.
        samples: Id of each row's sample, for messages; None: the rows' numbers.

    Raises:
        InvalidInputError: for logits that are NaN or infinite.
    """
    pad = tokenizer.pad_token_id
    # Embeddings serve the prefill, ids everything else; see the adapters.
    ids = torch.full(rows.attention_mask.shape, pad, device=rows.embeds.device)
    finite = FiniteLogits()
    with deepstack.reading(model):
        out = model.generate(
            input_ids=ids,
            inputs_embeds=rows.embeds,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            logits_processor=[finite],
        )
    answers: list[str] = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    names = [str(number) for number in range(len(ids))] if samples is None else samples
    check_answers(finite.broken(), [f"sample {name!r}" for name in names], model)
    return answers
