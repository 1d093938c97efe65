"""Features that a decoder adds to its hidden states behind its first layers (deepstack, Qwen3-VL).

`Prompt.extras` holds them level by level. Where prompts are cut into rollouts and padded into rows,
they travel beside the embeddings, in rows of `(1 + levels) * D`; `reading` takes them apart again.
So do shortened prompts where transformers takes no features with them (before 5.18).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cacovid.models.own_thread import hooked, replaced
from cacovid.models.registry import adapter_for
from cacovid.types import Prompt

#: `Prompt.extras` of a family with deepstack: `[levels, S, D]`, what is added to the hidden states
#: after the first layers; zeros where no visual token stands.
DEEPSTACK = "deepstack"

#: Of transformers before 5.18.
_COUNTING = "_get_image_nums_and_video_nums"


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


def adds_features(model: Any) -> bool:
    """Whether the model's decoder adds visual features behind its first layers."""
    return hasattr(adapter_for(model).text_model(model), "_deepstack_process")


@contextmanager
def reading(model: Any) -> Iterator[None]:
    """While it lasts, the decoder takes embeddings as `widened` makes them, in this thread.

    A pre-hook on the decoder of this instance splits them; embeddings of the plain width pass as
    they are. `generate` of old releases finds a prompt's pictures by its embeddings when it repeats
    it for beams; that method of the instance is shown the plain width too. Nothing happens to a
    model without deepstack.

    Args:
        model: A model that has an adapter.
    """
    if not adds_features(model):
        yield
        return
    width = model.config.get_text_config().hidden_size

    def split(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = kwargs.get("inputs_embeds")
        if rows is None or rows.shape[-1] == width:
            return None
        embeds, *levels = rows.split(width, dim=-1)
        return args, {**kwargs, "inputs_embeds": embeds, **decoder_inputs(levels)}

    def make(counting: Callable[..., Any]) -> Callable[..., Any]:
        def count(input_ids: Any, inputs_embeds: Any = None) -> Any:
            plain = None if inputs_embeds is None else inputs_embeds[..., :width]
            return counting(input_ids, plain)

        return count

    counts = [(model, _COUNTING, make)] if hasattr(model, _COUNTING) else []
    with hooked((adapter_for(model).text_model(model), split)), replaced(*counts):
        yield
