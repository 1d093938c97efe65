"""Features that a decoder adds to its hidden states behind its first layers (deepstack, Qwen3-VL).

`Prompt.extras` holds them level by level. Where prompts are cut into rollouts and padded into rows,
they travel beside the embeddings, in rows of `(1 + levels) * D`; `reading` takes them apart again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cacovid.models.registry import adapter_for
from cacovid.types import Prompt

#: `Prompt.extras` of a family with deepstack: `[levels, S, D]`, what is added to the hidden states
#: after the first layers; zeros where no visual token stands.
DEEPSTACK = "deepstack"


def decoder_inputs(levels: Iterable[Tensor]) -> dict[str, Any]:
    """What a decoder takes for features of every place of a batch.

    Args:
        levels: `[B, W, D]` for each of its first layers, zeros where no visual token stands. They
            are added to the text as well: the same numbers, and no places read from the device.
    """
    levels = list(levels)
    everywhere = torch.ones(levels[0].shape[:2], dtype=torch.bool, device=levels[0].device)
    return {
        "visual_pos_masks": everywhere,
        "deepstack_visual_embeds": [level.flatten(0, 1) for level in levels],
    }


def widened(prompt: Prompt) -> Prompt:
    """The prompt with rows that hold each token's deepstack features too, `[S, (1 + levels) * D]`.

    A prompt without any is returned as it is.
    """
    levels = prompt.extras.get(DEEPSTACK)
    if levels is None:
        return prompt
    return replace(prompt, embeds=torch.cat((prompt.embeds, *levels), dim=-1))


@contextmanager
def reading(model: Any, rows: Tensor) -> Iterator[Tensor]:
    """While it lasts, the model's first forward adds the deepstack features that rows hold.

    Args:
        model: The model that the prompts were embedded for.
        rows: `[B, W, (1 + levels) * D]`; with 0 levels nothing happens.

    Yields:
        The embeddings `[B, W, D]`, for that forward (or the prefill of `generate`).
    """
    embeds, *levels = rows.split(model.config.get_text_config().hidden_size, dim=-1)
    if not levels:
        yield embeds
        return
    inputs = decoder_inputs(levels)

    def add(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        handle.remove()  # what follows a prefill are words
        return args, {**kwargs, **inputs}

    handle = adapter_for(model).text_model(model).register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield embeds
    finally:
        handle.remove()
