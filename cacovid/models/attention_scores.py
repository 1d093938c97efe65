"""Attention that video tokens receive in one layer of the LLM, from that layer's q and k alone.

No attention map is asked of the model (`output_attentions` would turn fused attention off and
store `[H, S, S]`): the prompt runs up to the layer, and only the asking rows of the map are formed.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError
from cacovid.models.base import Adapter
from cacovid.models.column_means import column_means
from cacovid.models.own_thread import hooked
from cacovid.types import Prompt

Queries: TypeAlias = Literal["last", "question"]

#: Extras are named `received_attention/{layer}/{queries}`.
PREFIX = "received_attention/"

#: Extras `attention_inputs/{layer}`, `[S, D]`: the normalised hidden states that a layer's
#: attention reads; for those of layer 0 no layer runs.
INPUTS_PREFIX = "attention_inputs/"


class _Reached(Exception):
    """The layer was reached; what lies behind it need not run. No error is reported by it."""


def parse_name(name: str) -> tuple[int, Queries] | None:
    """`(layer, queries)` of an extra's name, or None where it names something else.

    >>> parse_name("received_attention/2/question")
    (2, 'question')
    """
    if not name.startswith(PREFIX):
        return None
    layer, _, queries = name.removeprefix(PREFIX).partition("/")
    if not layer.isdigit() or queries not in ("last", "question"):
        raise InvalidInputError(
            f"extra {name!r} is not known; expected received_attention/LAYER/last or "
            f"received_attention/LAYER/question"
        )
    return int(layer), "last" if queries == "last" else "question"


@torch.no_grad()
def received_attention(
    model: nn.Module, prompt: Prompt, layer: int, queries: Queries = "last"
) -> Tensor:
    """Attention probability that each video token receives, averaged over heads and queries.

    `a_j = mean over heads and asking tokens i of softmax_j(q_i k_j / sqrt(d))` under the causal
    mask, with the layer's own rotary embedding. Each packed prompt is run on its own, through the
    layers before `layer` only.

    Args:
        model: A Hugging Face model that has an adapter.
        prompt: One prompt, or several packed ones.
        layer: Layer of the LLM, from 0.
        queries: `"last"`: the last token of each prompt asks; `"question"`: its question tokens.

    Returns:
        `[N]` float32, in the grid's order, on the prompt's device. Deterministic.

    Raises:
        InvalidInputError: if the LLM has no such layer, a prompt has no question tokens to ask, or
            they all stand before a video.
        UnsupportedModelError: if the layer's attention has no separate q and k projections.
    """
    adapter, decoder = _decoder_of(model, layer, "attention")
    asking = _asking_rows(prompt, queries)
    received = prompt.embeds.new_zeros(prompt.embeds.shape[0], dtype=torch.float32)
    for number, (begin, end) in enumerate(_spans(prompt)):
        more = adapter.text_inputs(prompt, begin, end)
        hidden, rotary, attention = _run_to_layer(decoder, prompt, begin, end, layer, more)
        rows = torch.tensor(asking[number], device=received.device)
        received[begin:end] = _column_means(attention, hidden, rotary, rows)
    return received.index_select(0, prompt.video_index)


def _asking_rows(prompt: Prompt, queries: Queries) -> list[list[int]]:
    """The rows of each prompt that ask, counted from its beginning, ascending.

    Read back once, before anything is run.
    """
    if queries == "last":
        return [[end - begin - 1] for begin, end in _spans(prompt)]
    places = sorted(set(prompt.question_index.tolist()))
    firsts = prompt.video_index[list(prompt.grid.host_video_offsets[:-1])].tolist()
    asking = []
    for number, (begin, end) in enumerate(_spans(prompt)):
        rows = [place - begin for place in places if begin <= place < end]
        if not rows:
            raise InvalidInputError(
                f"prompt {number} has no question tokens, whose attention was asked for; pass "
                f"question=, or take the queries 'last'"
            )
        if any(begin + rows[-1] < first < end for first in firsts):
            raise InvalidInputError(
                f"the question of prompt {number} ends before a video begins, and tokens see only "
                f"what stands before them: none of the video's tokens receives attention from it; "
                f"put the question behind the video, or take the queries 'last'"
            )
        asking.append(rows)
    return asking


@torch.no_grad()
def attention_inputs(model: nn.Module, prompt: Prompt, layer: int = 0) -> Tensor:
    """The normalised hidden states that the attention of one layer reads.

    Args:
        model: A Hugging Face model that has an adapter.
        prompt: One prompt, or several packed ones; each is run on its own, up to the layer.
        layer: Layer of the LLM, from 0.

    Returns:
        `[S, D]`, packed as the prompt, in the model's dtype.

    Raises:
        InvalidInputError: if the LLM has no such layer.
        UnsupportedModelError: if the layer's attention has no separate q and k projections.
    """
    adapter, decoder = _decoder_of(model, layer, "inputs")
    parts = []
    for begin, end in _spans(prompt):
        more = adapter.text_inputs(prompt, begin, end)
        parts.append(_run_to_layer(decoder, prompt, begin, end, layer, more)[0][0])
    return torch.cat(parts)


def _decoder_of(model: nn.Module, layer: int, wanted: str) -> tuple[Adapter, Any]:
    """The model's adapter and decoder, which has the layer."""
    from cacovid.models.registry import adapter_for

    adapter = adapter_for(model)
    decoder = adapter.text_model(model)
    depth = len(decoder.layers)
    if not 0 <= layer < depth:
        raise InvalidInputError(
            f"{wanted} of layer {layer} asked for; the LLM has layers 0 to {depth - 1}"
        )
    return adapter, decoder


def _spans(prompt: Prompt) -> Iterator[tuple[int, int]]:
    offsets = prompt.prompt_offsets or (0, prompt.embeds.shape[0])
    return itertools.pairwise(offsets)


def _run_to_layer(
    decoder: Any, prompt: Prompt, begin: int, end: int, layer: int, more: dict[str, Any]
) -> tuple[Tensor, tuple[Tensor, Tensor], Any]:
    """The layer's normalised inputs `[1, S, D]`, its rotary `(cos, sin)`, and its attention."""
    attention = decoder.layers[layer].self_attn
    for name in ("q_proj", "k_proj", "head_dim"):
        if not hasattr(attention, name):
            raise UnsupportedModelError(
                f"{type(attention).__name__} has no {name}; received attention is known for "
                f"decoders with separate q and k projections only"
            )
    caught: dict[str, Any] = {}

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught["hidden"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        caught["rotary"] = kwargs.get("position_embeddings")
        raise _Reached

    embeds = prompt.embeds[begin:end].unsqueeze(0)
    with hooked((attention, catch)), contextlib.suppress(_Reached):
        decoder(
            inputs_embeds=embeds,
            # Given, although it hides nothing: without one, gaps in the positions would be read
            # as borders between packed sequences.
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device),
            position_ids=prompt.position_ids[..., begin:end].unsqueeze(-2),
            use_cache=False,
            **more,
        )
    if caught.get("rotary") is None:
        raise UnsupportedModelError(
            f"{type(attention).__name__} was not handed its rotary embedding; received attention "
            f"is known for decoders that pass position_embeddings only"
        )
    return caught["hidden"], caught["rotary"], attention


@torch.no_grad()
def last_query_attention(
    attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """Attention that the rows receive from the last one in one layer, averaged over heads.

    Args:
        attention: The layer's attention, with separate q and k projections.
        hidden: `[1, R, D]`: what it reads.
        rotary: `(cos, sin)` of the rows.

    Returns:
        `[R]` float32.
    """
    last = torch.tensor([hidden.shape[1] - 1], device=hidden.device)
    return _column_means(attention, hidden, rotary, last)


def _column_means(
    attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], rows: Tensor
) -> Tensor:
    """`[S]` float32: mean over heads and `rows` of the layer's attention probabilities."""
    length, head = hidden.shape[1], attention.head_dim
    query = attention.q_proj(hidden).view(1, length, -1, head)
    key = attention.k_proj(hidden).view(1, length, -1, head)
    if getattr(attention, "q_norm", None) is not None:
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = _rotate(attention, query.transpose(1, 2), key.transpose(1, 2), rotary)
    query = query.index_select(2, rows)
    scale = getattr(attention, "scaling", head**-0.5)
    columns = torch.arange(length, device=rows.device)
    hidden_from = columns[None, :] > rows[:, None]
    window = getattr(attention, "sliding_window", None)
    if window is not None:
        hidden_from |= columns[None, :] <= rows[:, None] - window
    return column_means(query, key, scale, hidden_from)[0]


def _rotate(
    attention: Any, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The model's own rotation of `[1, H, S, d]` queries and keys."""
    module = sys.modules[type(attention).__module__]
    if hasattr(module, "apply_multimodal_rotary_pos_emb"):
        # Old releases of transformers put the axes of M-RoPE together here.
        sections = attention.config.rope_parameters["mrope_section"]
        return module.apply_multimodal_rotary_pos_emb(query, key, *rotary, sections)
    return module.apply_rotary_pos_emb(query, key, *rotary)
