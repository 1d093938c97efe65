"""`fastv`: after a few layers, the tokens that the last one attends to (arXiv 2403.06764)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.methods.inside import InsideMethod, LayerHook, Reduced
from cacovid.methods.ranking import best
from cacovid.types import PerVideo, Prompt


class FastVMethod(InsideMethod):
    """Layers before `layer` run on all tokens; then those with the most attention go on.

    The attention is that of the last prompt token in layer `layer - 1`, averaged over heads: one
    row of the map, from that layer's q and k. Kept share `(r*L - layer) / (L - layer)`, so that
    the layers of a model of `L` run on a share `r` of the tokens on average; see `LayerHook`.

    Args:
        layer: Layers that run on all tokens, at least 1.

    Raises:
        InvalidInputError: for a layer below 1.
    """

    def __init__(self, layer: int | str = 2) -> None:
        try:
            self.layer = int(layer)
        except ValueError:
            self.layer = 0
        if self.layer < 1:
            raise InvalidInputError(
                f"layer of method 'fastv' is {layer!r}; expected how many layers run on all "
                f"tokens, at least 1, as in 'fastv:2'"
            )
        self.name = "fastv" if self.layer == 2 else f"fastv:{self.layer}"

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> LayerHook:
        """The hook for one prompt; see `InsideMethod.__call__`."""
        return _FastVHook(self.name, prompt, retention, self.layer)


class _FastVHook(LayerHook):
    def __init__(self, name: str, prompt: Prompt, retention: PerVideo, layer: int) -> None:
        super().__init__(name, prompt, retention)
        self._layer = layer

    def begin(self, depth: int) -> None:
        if self._layer >= depth:
            raise InvalidInputError(
                f"{self.name} runs {self._layer} layers on all tokens, and the model has {depth}"
            )
        super().begin(depth)

    def reduce(
        self, layer: int, hidden: Tensor, received: Callable[[], Tensor] | None
    ) -> Reduced | None:
        if layer != self._layer or received is None:
            return None
        return keep_attended(self, layer, hidden, received)


def keep_attended(
    hook: LayerHook,
    layer: int,
    hidden: Tensor,
    received: Callable[[], Tensor],
    due: Sequence[bool] | None = None,
) -> Reduced | None:
    """Prunes each video to its target by received attention, ties to the lowest index.

    Args:
        hook: Knows what is left of each video; its counts go down.
        layer: The layer whose output is pruned.
        hidden: `[S, D]`, that output.
        received: Gives the attention that every row receives, `[S]` float32.
        due: Which videos are pruned; default all.
    """
    targets = [
        hook.target(video, layer) if due is None or due[video] else now
        for video, now in enumerate(hook.counts_now)
    ]
    if all(target >= now for target, now in zip(targets, hook.counts_now, strict=True)):
        return None
    attention = received()
    dropped = torch.zeros_like(hook.token, dtype=torch.bool)
    for video, target in enumerate(targets):
        if target < hook.counts_now[video]:
            rows = hook.rows_of(video)
            dropped.index_fill_(0, rows, True)
            kept = rows.index_select(0, best(attention.index_select(0, rows), target))
            dropped.index_fill_(0, kept, False)
            hook.counts_now[video] = target
    return without(dropped, hidden, hook)


def without(dropped: Tensor, hidden: Tensor, hook: LayerHook) -> Reduced:
    """Everything but the dropped rows, whose number the hook's counts tell.

    Args:
        dropped: `[S]` bool.
        hidden: `[S, D]`.
        hook: Its counts are those after dropping: nothing waits for the device.
    """
    text = hook.length - hook.grid.num_tokens
    order = torch.sort(dropped.to(torch.uint8), stable=True).indices
    rows = order[: text + sum(hook.counts_now)]
    return Reduced(rows, hidden.index_select(0, rows))
