"""The videos of a packed prompt one by one, and methods that treat each on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.methods.base import required_extra
from cacovid.methods.finite import require_finite
from cacovid.types import PerVideo, Prompt, Scores, Selection


@dataclass(frozen=True)
class VideoTokens:
    """One video of a packed prompt.

    Args:
        features: `[n, D]`: its tokens' features, as they are.
        size: `(t, h, w)`.
        question: `[L, D]` float32: its question's embeddings; `[0, D]` where there is none.
        extras: Its rows of those `Prompt.extras` that have one per video token.
    """

    features: Tensor
    size: tuple[int, int, int]
    question: Tensor
    extras: dict[str, Tensor]

    @cached_property
    def rows(self) -> Tensor:
        """`[n, D]` float32: the features. Made when first read: not every method does."""
        return self.features.float()

    @property
    def frames(self) -> Tensor:
        """`[t, h*w, D]`: the tokens, frame by frame."""
        return self.rows.unflatten(0, (self.size[0], -1))


def each_video(prompt: Prompt) -> Iterator[VideoTokens]:
    """The videos of a packed prompt, in order.

    Args:
        prompt: One prompt or several; `question_offsets` give each video its own question.
    """
    grid = prompt.grid
    features = prompt.video_embeds.detach()
    question = prompt.question_embeds.detach().float()
    questions = prompt.question_offsets
    aligned = {
        name: value.detach()
        for name, value in prompt.extras.items()
        if isinstance(value, Tensor) and value.shape[:1] == (grid.num_tokens,)
    }
    for index, (begin, end) in enumerate(pairwise(grid.host_video_offsets)):
        own = question if questions is None else question[questions[index] : questions[index + 1]]
        yield VideoTokens(
            features[begin:end],
            grid.sizes[index],
            own,
            {name: value[begin:end] for name, value in aligned.items()},
        )


@dataclass(frozen=True)
class Choice:
    """What is kept of one video.

    Args:
        keep: `[k]` int64, ascending, within the video.
        embeds: `[k, D]` float32 where tokens were merged, else None.
    """

    keep: Tensor
    embeds: Tensor | None = None


class PerVideoMethod(ABC):
    """A method that chooses tokens of each video on its own and scores none.

    A sub-class gives `name`, `question_aware`, `needs` and `choose`. Where everything is kept,
    everything is kept as it is: `choose` is not asked. What is read has to be finite: features,
    the question's embeddings if `question_aware`, and the extras in `needs`.
    """

    name: str
    question_aware: bool = False
    needs: frozenset[str] = frozenset()

    @abstractmethod
    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses `count` of the video's tokens.

        Args:
            video: The video.
            count: Its exact budget, at least 1 and below the number of its tokens.
            retention: The share that was asked for.
        """

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> Selection:
        """Chooses tokens of each video; see `Method.__call__`. The seed changes nothing.

        Raises:
            InvalidInputError: also for extras of another length than `N`, and for NaN or infinite
                values; see `require_finite` for those on a GPU.
        """
        grid = prompt.grid
        counts = grid.budgets(retention)
        ratios = grid.per_video(retention, "retention")
        self._check(prompt)
        choices = [
            _everything(video) if count == len(video.features) else self.choose(video, count, ratio)
            for video, count, ratio in zip(each_video(prompt), counts, ratios, strict=True)
        ]
        begins = grid.host_video_offsets
        keep = torch.cat([b + c.keep for b, c in zip(begins, choices, strict=False)])
        return Selection(keep, grid, counts, _merged(prompt, keep, choices))

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores | None:
        """None: tokens are chosen for what they are together, not one by one."""
        return None

    def _check(self, prompt: Prompt) -> None:
        for need in sorted(self.needs):
            key = need.removesuffix("?")
            if key == need or key in prompt.extras:
                self._check_extra(prompt, key)
        require_finite(prompt.video_embeds, "feature row of video token", self.name)
        if self.question_aware:
            require_finite(prompt.question_embeds, "embedding of question token", self.name)

    def _check_extra(self, prompt: Prompt, key: str) -> None:
        value, count = required_extra(prompt, key, self.name), prompt.grid.num_tokens
        if not isinstance(value, Tensor) or value.shape[:1] != (count,):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(
                f"prompt.extras[{key!r}] is {given}; method {self.name!r} expects a tensor with "
                f"one row for each of the {count} video tokens of the grid {prompt.grid.sizes}"
            )
        require_finite(value, f"entry of prompt.extras[{key!r}] for video token", self.name)

    def __repr__(self) -> str:
        return f"<method {self.name}>"


def _everything(video: VideoTokens) -> Choice:
    return Choice(torch.arange(len(video.features), device=video.features.device))


def _merged(prompt: Prompt, keep: Tensor, choices: list[Choice]) -> Tensor | None:
    """`[K, D]` in the prompt's dtype: new embeddings, and old ones where nothing was merged."""
    if all(choice.embeds is None for choice in choices):
        return None
    out = prompt.embeds.index_select(0, prompt.video_index.index_select(0, keep))
    begin = 0
    for choice in choices:
        end = begin + len(choice.keep)
        if choice.embeds is not None:
            out[begin:end] = choice.embeds.to(out.dtype)
        begin = end
    return out


def even_shares(total: int, parts: int) -> tuple[int, ...]:
    """`total` in `parts` that differ by one at most: `floor((i+1)*total/parts) - floor(i*...)`.

    >>> even_shares(7, 3)
    (2, 2, 3)
    """
    return tuple((i + 1) * total // parts - i * total // parts for i in range(parts))
