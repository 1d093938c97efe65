"""Running a `LayerHook`: hidden states shortened between the layers of a model's instance.

Forward pre-hooks on the decoder's layers cut hidden states, rotary embeddings, positions and masks
to the rows that are left; each layer's cache then holds the rows that the layer ran on. The model's
own attention is used as it is (SDPA, FlashAttention, eager): the one row of attention that a method
asks for is computed beside it, from the layer's q and k.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cacovid.errors import UnsupportedModelError
from cacovid.methods.inside import LayerHook
from cacovid.models import deepstack
from cacovid.models.attention_scores import last_query_attention
from cacovid.models.own_thread import hooked
from cacovid.models.registry import adapter_for


@contextmanager
def running(model: nn.Module, hook: LayerHook | None = None) -> Iterator[LayerHook | None]:
    """While it lasts, the model reads what `prune_inputs` made; leaving removes all hooks.

    All of it holds for the thread that entered; others run the same model as if nothing were there.

    With a hook, a prefill of its prompt is pruned inside. The prompt comes in one piece, on its own
    and without padding; decoding steps follow it. A further prefill starts over.

    Without one, this is needed for models with deepstack (Qwen3-VL) and transformers before 5.18
    only, where features of inner vision layers travel in `inputs_embeds`.

    Args:
        model: A Hugging Face model that has an adapter; nothing but this instance changes.
        hook: What an in-LLM method gave.

    Raises:
        InvalidInputError: if the model has too few layers for the method.
        UnsupportedModelError: for layers with a sliding window or without separate q and k; in
            the forward, for batches, prefill in pieces, and caches of a fixed length.
    """
    adapter = adapter_for(model)
    if hook is None:
        with contextlib.nullcontext() if adapter.hands_over_features else deepstack.reading(model):
            yield None
        return
    decoder = adapter.text_model(model)
    if deepstack.adds_features(model):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} adds vision features between its layers, at places that "
            f"pruning inside would shift; use a method that prunes before the language model"
        )
    layers = list(decoder.layers)
    for number, layer in enumerate(layers):
        _check_layer(number, layer)
    hook.begin(len(layers))
    run = _Run(hook, len(layers))
    hooks: list[tuple[nn.Module, Callable[..., Any]]] = []
    for number, layer in enumerate(layers):
        attention: Any = layer.self_attn
        hooks += [(layer, run.layer_hook(number)), (attention, run.catch)]
    with hooked(*hooks):
        yield hook


class _Run:
    """The state between layers."""

    def __init__(self, hook: LayerHook, depth: int) -> None:
        self.hook = hook
        self.depth = depth
        self.prefill = False
        #: The original places of the rows that are there; None: all are.
        self.rows: Tensor | None = None
        #: Layers whose cache is shorter than the prompt.
        self.short: set[int] = set()
        self._attention: tuple[Any, Tensor, tuple[Tensor, Tensor]] | None = None

    def catch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps what a layer's attention reads, until the next layer asks for the attention."""
        if self.prefill:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._attention = (module, hidden, kwargs["position_embeddings"])

    def layer_hook(self, number: int) -> Any:
        """The pre-hook of one layer."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            kwargs = dict(kwargs)
            named = "hidden_states" in kwargs
            hidden = kwargs["hidden_states"] if named else args[0]
            if number == 0:
                self._begin(hidden, kwargs.get("past_key_values"))
            if not self.prefill:
                # A decoding step sees everything that its layer's cache holds.
                if number in self.short and kwargs.get("attention_mask") is not None:
                    kwargs["attention_mask"] = None
                return args, kwargs
            hidden = self._reduce(number, hidden)
            if self.rows is not None:
                self.short.add(number)
                _cut(kwargs, self.rows)
            if named:
                kwargs["hidden_states"] = hidden
            else:
                args = (hidden, *args[1:])
            return args, kwargs

        return before

    def _begin(self, hidden: Tensor, cache: Any) -> None:
        past = 0 if cache is None else int(cache.get_seq_length())
        if past and hidden.shape[1] == 1 and hidden.shape[0] == 1:
            self.prefill = False
            return
        if past or hidden.shape[0] != 1 or hidden.shape[1] != self.hook.length:
            raise UnsupportedModelError(
                f"{self.hook.name} prunes inside the language model one prompt of "
                f"{self.hook.length} tokens, read in one piece; the model read "
                f"{tuple(hidden.shape[:2])} tokens after {past}. Generate for one prompt at a "
                f"time, with one beam and no chunked prefill"
            )
        if cache is not None and type(cache).__name__ != "DynamicCache":
            raise UnsupportedModelError(
                f"{self.hook.name} needs a cache whose layers may differ in length; got a "
                f"{type(cache).__name__}. Leave cache_implementation out"
            )
        self.prefill, self.rows, self.short = True, None, set()
        self._attention = None
        self.hook.begin(self.depth)

    def _reduce(self, number: int, hidden: Tensor) -> Tensor:
        seen = self._attention
        received = None if seen is None else lambda: last_query_attention(*seen)
        reduced = self.hook.before(number, hidden[0], received)
        if number + 1 == self.depth:
            self._attention = None
        if reduced is None:
            return hidden
        before = self.rows
        self.rows = reduced.rows if before is None else before.index_select(0, reduced.rows)
        return reduced.hidden[None]


def _cut(kwargs: dict[str, Any], rows: Tensor) -> None:
    """Rotary embeddings, positions and mask of the rows that are left."""
    kwargs["position_embeddings"] = tuple(
        part.index_select(-2, rows) for part in kwargs["position_embeddings"]
    )
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = kwargs["position_ids"].index_select(-1, rows)
    mask = kwargs.get("attention_mask")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise UnsupportedModelError(
            f"the attention mask is a {type(mask).__name__}; pruning inside the language model "
            f"takes masks of eager attention, SDPA and FlashAttention 2"
        )
    mask = mask.index_select(-1, rows)
    kwargs["attention_mask"] = mask.index_select(-2, rows) if mask.dim() == 4 else mask


def _check_layer(number: int, layer: Any) -> None:
    attention = getattr(layer, "self_attn", None)
    if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim")):
        raise UnsupportedModelError(
            f"layer {number} is a {type(layer).__name__} without separate q and k projections; "
            f"pruning inside is known for decoders that have them"
        )
    if getattr(attention, "sliding_window", None) is not None:
        raise UnsupportedModelError(
            f"layer {number} attends in a sliding window, which counts tokens that pruning inside "
            f"takes out; use a method that prunes before the language model"
        )
