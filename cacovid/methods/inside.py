"""Methods that prune inside the language model, between its layers.

Calling one gives a `LayerHook`, which `cacovid.models.running(model, hook)` runs with; `attach`,
`VideoQA` and `cacovid ask --method` do so. This file knows tokens and budgets; the layers are
`cacovid.models.inside`'s.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import PerVideo, Prompt, Selection, floor_budget

#: Token-layers that rounding of `r * L * N` may come to.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Reduced:
    """What is left before a layer.

    Args:
        rows: `[R]` int64, ascending: the rows that stay, of those that were there.
        hidden: `[R, D]`: their hidden states, merged ones among them.
    """

    rows: Tensor
    hidden: Tensor


class LayerHook(ABC):
    """What an in-LLM method does to one prompt, layer by layer.

    The budget is an average over the layers: `sum over layers of tokens <= r * L * N` for each
    video of `N` tokens in a model of `L` layers. Where the layers that ran have used it up,
    `max(1, floor(r*N))` of the video's tokens go on; where they left less than one token for each
    layer, one goes on. A RuntimeWarning then says what the average is.

    Args:
        name: The method's.
        prompt: The prompt, of one or several videos.
        retention: Layer-averaged share of tokens, in (0, 1]; one number, or one per video.

    Raises:
        InvalidInputError: for several prompts in one, or a retention outside (0, 1].
    """

    def __init__(self, name: str, prompt: Prompt, retention: PerVideo) -> None:
        if prompt.prompt_offsets is not None and len(prompt.prompt_offsets) > 2:
            raise InvalidInputError(
                f"{name} prunes inside the language model, one prompt at a time; got "
                f"{len(prompt.prompt_offsets) - 1} packed prompts"
            )
        self.name = name
        self.grid = prompt.grid
        self.ratios = prompt.grid.per_video(retention, "retention")
        self.budgets = prompt.grid.budgets(retention)
        self.length = prompt.embeds.shape[0]
        self._video_index = prompt.video_index
        self._selection: Selection | None = None
        self.depth = 0
        #: Video tokens that each layer ran on, once it did; host integers.
        self.tokens_per_layer: list[int] = []

    def begin(self, depth: int) -> None:
        """Starts over, at the prefill of a model of `depth` layers.

        Raises:
            InvalidInputError: if the model has too few layers.
        """
        self.depth = depth
        self.tokens_per_layer = []
        self._selection = None
        token = torch.full((self.length,), -1, dtype=torch.int64, device=self._video_index.device)
        order = torch.arange(self.grid.num_tokens, device=token.device)
        #: `[R]` int64: the video token of each row that is there, -1 for anything else.
        self.token = token.index_copy_(0, self._video_index, order)
        self.counts_now = list(self.grid.tokens_per_video)
        self._spent = [0] * self.grid.num_videos

    def before(
        self, layer: int, hidden: Tensor, received: Callable[[], Tensor] | None
    ) -> Reduced | None:
        """What goes into a layer; called for every layer of the prefill, in order.

        Args:
            layer: The layer, from 0.
            hidden: `[R, D]`: what the layer before gave.
            received: Gives the attention, `[R]` float32, that the rows received from the last one
                in the layer before, averaged over heads; None before layer 0.

        Returns:
            What is left, or None where all is.
        """
        reduced = self.reduce(layer, hidden, received)
        if reduced is not None:
            self.token = self.token.index_select(0, reduced.rows)
        self.tokens_per_layer.append(sum(self.counts_now))
        for video, count in enumerate(self.counts_now):
            self._spent[video] += count
        if layer + 1 == self.depth:
            self._finish()
        return reduced

    @abstractmethod
    def reduce(
        self, layer: int, hidden: Tensor, received: Callable[[], Tensor] | None
    ) -> Reduced | None:
        """As `before`; keeps `counts_now` right."""

    def target(self, video: int, layer: int) -> int:
        """Tokens of a video with which all layers from `layer` on meet its budget.

        `floor(left / (L - layer))`, at least 1 where anything is left; where nothing is,
        `max(1, floor(r*N))`. A warning at the end says where the budget was not met.
        """
        left = self._left(video)
        if left <= _ROUNDING:
            return self.budgets[video]
        # `floor_budget` has a small amount added before the floor, as every budget has.
        count = floor_budget(left / (self.depth - layer), 1)
        return min(max(1, count), self.grid.tokens_per_video[video])

    def _left(self, video: int) -> float:
        """Token-layers that a video's budget has left: `r * L * N` less what layers ran on."""
        total = self.grid.tokens_per_video[video]
        return self.ratios[video] * self.depth * total - self._spent[video]

    def rows_of(self, video: int) -> Tensor:
        """`[n]` int64, ascending: the rows of a video's tokens that are there."""
        begin, end = self.grid.host_video_offsets[video : video + 2]
        mask = (self.token >= begin) & (self.token < end)
        order = torch.sort(mask.to(torch.uint8), descending=True, stable=True).indices
        return order[: self.counts_now[video]]

    @property
    def selection(self) -> Selection:
        """The tokens that the last layer ran on.

        Raises:
            InvalidInputError: if no prompt was read yet.
        """
        if self._selection is None:
            raise InvalidInputError(
                f"{self.name} prunes inside the language model, and no prompt was read yet: "
                f"call model.generate within cacovid.attach(model, {self.name!r}, ...), or within "
                f"cacovid.models.running(model, hook)"
            )
        return self._selection

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each video that the last layer ran on; raises as `selection` does."""
        return self.selection.counts

    @property
    def layer_average(self) -> float:
        """Share of the video tokens that a layer ran on, averaged over the layers."""
        return sum(self.tokens_per_layer) / (self.grid.num_tokens * self.depth)

    def _finish(self) -> None:
        keep = torch.sort(self.token, stable=True).values[-sum(self.counts_now) :]
        self._selection = Selection(keep, self.grid, tuple(self.counts_now))
        if any(self._left(video) < -_ROUNDING for video in range(self.grid.num_videos)):
            warnings.warn(
                f"{self.name} cannot keep to a layer-averaged retention of "
                f"{', '.join(f'{r:g}' for r in sorted(set(self.ratios)))} in {self.depth} layers: "
                f"the layers before pruning use it up. The layers ran on "
                f"{100 * self.layer_average:.1f}% of the video tokens on average",
                RuntimeWarning,
                stacklevel=2,
            )


class InsideMethod(ABC):
    """A method that prunes inside the language model; calling it gives a hook to run with."""

    name: str
    question_aware = True
    needs: frozenset[str] = frozenset()
    #: Tells these methods from those that give a `Selection`.
    inside = True

    @abstractmethod
    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> LayerHook:
        """The hook for one prompt.

        Args:
            prompt: The embedded prompt.
            retention: Layer-averaged share of tokens, in (0, 1]; one number, or one per video.
            seed: Changes nothing.
        """

    def scores(self, prompt: Prompt, *, seed: int = 0) -> None:
        """None: the layers score."""
        return

    def __repr__(self) -> str:
        return f"<method {self.name}>"
