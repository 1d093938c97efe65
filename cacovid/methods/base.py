"""What every way of choosing tokens looks like, and the two shapes it comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

from cacovid.errors import InvalidInputError
from cacovid.methods.top_k import top_k
from cacovid.types import PerVideo, Prompt, Scores, Selection


@runtime_checkable
class Method(Protocol):
    """A way of choosing video tokens; the same prompt, retention and seed give the same tokens.

    Attributes:
        name: How tables and `cacovid.methods.get` call it, settings included.
        question_aware: Whether the question has a say in the choice.
        needs: Names of the `Prompt.extras` that an adapter has to fill in; one with a question mark
            behind it (`"vision_attention?"`) only where the model gives it.

    A method that draws has `draws = True` besides: tables then average several seeds.
    """

    @property
    def name(self) -> str:
        """How tables and `cacovid.methods.get` call it, settings included."""
        ...

    @property
    def question_aware(self) -> bool:
        """Whether the question has a say in the choice."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `Prompt.extras` that an adapter has to fill in."""
        ...

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> Selection:
        """Chooses `max(1, floor(r*N))` tokens of each packed video.

        Args:
            prompt: The embedded prompt, or several packed ones.
            retention: Share of tokens to keep, in (0, 1]; one number, or one per video.
            seed: Seed of the methods that draw; the others ignore it.

        Returns:
            The kept tokens, ascending.

        Raises:
            InvalidInputError: for a retention outside (0, 1], or extras that are missing.
        """
        ...

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores | None:
        """What the method thinks of each token, or None where it does not score them."""
        ...


class ScoredMethod(ABC):
    """A method that scores the tokens and then ranks them.

    A sub-class gives `name`, `question_aware`, `needs` and `scores`; the ranking is the exact
    top-k over each video, unless it overrides `select`.
    """

    name: str
    question_aware: bool
    needs: frozenset[str] = frozenset()

    @abstractmethod
    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """Scores of all `N` video tokens: float32 `[N]`, higher is kept first."""

    def select(self, scores: Scores, prompt: Prompt, retention: PerVideo) -> Selection:
        """The kept tokens, given the scores.

        Args:
            scores: What `scores` returned for this prompt.
            prompt: The prompt.
            retention: Share of tokens to keep, in (0, 1]; one number, or one per video.
        """
        return top_k(scores.token, prompt.grid, retention)

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> Selection:
        """Scores the tokens and keeps the best ones; see `Method.__call__`."""
        return self.select(self.scores(prompt, seed=seed), prompt, retention)

    def __repr__(self) -> str:
        return f"<method {self.name}>"


def score_and_select(
    method: Method, prompt: Prompt, retention: PerVideo, *, seed: int = 0
) -> tuple[Selection, Scores | None]:
    """The kept tokens with the scores behind them, scoring only once.

    Args:
        method: Any method.
        prompt: The embedded prompt, or several packed ones.
        retention: Share of tokens to keep, in (0, 1]; one number, or one per video.
        seed: Seed of the methods that draw.

    Returns:
        The selection, and the scores or None where the method has none.
    """
    if isinstance(method, ScoredMethod):
        scores = method.scores(prompt, seed=seed)
        return method.select(scores, prompt, retention), scores
    return method(prompt, retention, seed=seed), method.scores(prompt, seed=seed)


def required_extra(prompt: Prompt, key: str, method: str) -> Any:
    """`prompt.extras[key]`.

    Raises:
        InvalidInputError: if nobody filled it in.
    """
    try:
        return prompt.extras[key]
    except KeyError:
        there = ", ".join(sorted(prompt.extras)) or "none"
        raise InvalidInputError(
            f"method {method!r} needs prompt.extras[{key!r}]; the prompt has: {there}. "
            f"Let the model's adapter fill it in: adapter.embed(model, inputs, needs=method.needs)"
        ) from None
