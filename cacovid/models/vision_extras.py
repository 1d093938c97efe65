"""What methods ask of the vision tower beside the features: received attention, and keys.

Caught by hooks on the tower's instance while it runs for the features, from the inputs of one
attention module; the tower's own attention is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import UnsupportedModelError
from cacovid.models.attention_scores import (
    INPUTS_PREFIX,
    attention_inputs,
    parse_name,
    received_attention,
)
from cacovid.models.base import VideoFeatures
from cacovid.models.column_means import column_means
from cacovid.models.own_thread import hooked
from cacovid.types import Prompt

#: `[N]`: attention received in the tower's penultimate layer, mean over heads and queries.
ATTENTION = "vision_attention"

#: `[N, D_v]`: the keys of that layer, all heads.
KEYS = "vision_keys"

#: `[N]`: attention of the tower's pooling head, mean over heads, where it has one.
POOLING = "vision_pooling_attention"

#: Patches of frames `[F, P, ...]`, in the order of the frames.
Caught = dict[str, list[Tensor]]


@contextmanager
def watch_vision(tower: nn.Module, needs: Collection[str]) -> Iterator[Caught]:
    """While it lasts, what is needed is caught from every run of the tower in this thread.

    Args:
        tower: A vision tower of attention layers with `q_proj` and `k_proj`, such as SigLIP.
        needs: Names of extras, with or without the question mark; others are left to others.

    Yields:
        What was caught, by name; empty where the tower has no such layers or head.
    """
    names = {need.removesuffix("?") for need in needs}
    caught: Caught = {}
    hooks: list[tuple[nn.Module, Callable[..., Any]]] = []
    attention = _penultimate_attention(tower)
    if names & {ATTENTION, KEYS} and attention is not None:
        catch = functools.partial(_catch_layer, names=names, caught=caught)
        hooks.append((attention, catch))
    head = getattr(getattr(tower, "head", None), "attention", None)
    if POOLING in names and isinstance(head, nn.MultiheadAttention):
        hooks.append((head, functools.partial(_catch_pooling, caught=caught)))
    with hooked(*hooks):
        yield caught


def has_extras(features: VideoFeatures, needs: Collection[str]) -> bool:
    """Whether features of an earlier call hold what every such tower gives, if it is needed."""
    names = {need.removesuffix("?") for need in needs}
    return all(name in features.extras for name in names & {ATTENTION, KEYS})


def pooled(caught: Caught, pool: Callable[[Tensor], Tensor], patches: int) -> dict[str, Tensor]:
    """What was caught, for the tokens that the model makes of the patches.

    Args:
        caught: From `watch_vision`.
        pool: The model's own pooling, `[F, patches, C]` to `[F, n, C]`.
        patches: Patches of a frame; a class token before them is left out.

    Returns:
        `[N]` or `[N, C]` float32 by name.
    """
    out = {}
    for name, parts in caught.items():
        rows = []
        for part in parts:
            values = part[:, part.shape[1] - patches :]
            wide = values if values.dim() == 3 else values[..., None]
            rows.append(pool(wide.float()).flatten(0, 1))
        joined = torch.cat(rows)
        out[name] = joined if name == KEYS else joined.squeeze(-1)
    return out


def fill_extras(
    model: nn.Module, prompt: Prompt, needs: Collection[str], features: VideoFeatures
) -> None:
    """Fills in `prompt.extras`.

    Args:
        model: The model.
        prompt: The embedded prompt; its extras are changed in place.
        needs: Names of extras; one with a question mark is left out where it is not to be had.
        features: The videos' features, with what was caught beside them.

    Raises:
        UnsupportedModelError: for an extra that is needed and not to be had.
    """
    for need in needs:
        name = need.removesuffix("?")
        wanted = parse_name(name)
        if wanted is not None:
            prompt.extras[name] = received_attention(model, prompt, *wanted)
        elif name.startswith(INPUTS_PREFIX) and name.removeprefix(INPUTS_PREFIX).isdigit():
            layer = int(name.removeprefix(INPUTS_PREFIX))
            prompt.extras[name] = attention_inputs(model, prompt, layer)
        elif name in features.extras:
            prompt.extras[name] = features.extras[name]
        elif name == need:
            raise UnsupportedModelError(_reason(name, features.extras))


def _reason(name: str, there: Mapping[str, Tensor]) -> str:
    if name == "evidence":
        return (
            "the extra 'evidence' is the truth of the embedded task, which no model gives; "
            "compare with the oracle by: cacovid eval --embedded --methods oracle"
        )
    if name in (ATTENTION, KEYS):
        return (
            f"the extra {name!r} was not caught: the vision tower has no layers with q_proj and "
            f"k_proj, or the features come from an earlier call without it"
        )
    return (
        f"the extra {name!r} is not to be had; adapters give received_attention/LAYER/last, "
        f"received_attention/LAYER/question, attention_inputs/LAYER, {ATTENTION}, {KEYS}"
        f"{f', {POOLING}' if POOLING in there else ''}"
    )


def _penultimate_attention(tower: nn.Module) -> Any:
    for module in tower.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            attention = getattr(layers[max(0, len(layers) - 2)], "self_attn", None)
            if all(hasattr(attention, name) for name in ("q_proj", "k_proj", "num_heads")):
                return attention
    return None


@torch.no_grad()
def _catch_layer(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], names: set[str], caught: Caught
) -> None:
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    key = module.k_proj(hidden)
    if KEYS in names:
        caught.setdefault(KEYS, []).append(key)
    if ATTENTION in names:
        heads = (module.num_heads, -1)
        query = module.q_proj(hidden).unflatten(-1, heads).transpose(1, 2)
        split = key.unflatten(-1, heads).transpose(1, 2)
        scale = getattr(module, "scale", query.shape[-1] ** -0.5)
        caught.setdefault(ATTENTION, []).append(column_means(query, split, scale))


@torch.no_grad()
def _catch_pooling(
    module: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict[str, Any], caught: Caught
) -> None:
    probe, hidden = args[:2]
    weight, bias = module.in_proj_weight, module.in_proj_bias
    width, heads = module.embed_dim, (module.num_heads, -1)

    def project(rows: Tensor, part: int) -> Tensor:
        place = slice(part * width, (part + 1) * width)
        own = None if bias is None else bias[place]
        return nn.functional.linear(rows, weight[place], own).unflatten(-1, heads).transpose(1, 2)

    query, key = project(probe, 0), project(hidden, 1)
    received = column_means(query, key, query.shape[-1] ** -0.5)
    caught.setdefault(POOLING, []).append(received)
