"""What is compared: methods, and the oracles of the embedded task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from cacovid import methods
from cacovid.errors import CacovidError, InvalidInputError
from cacovid.methods import LayerHook, Method, ScoredMethod
from cacovid.models.prune import check_selection, keep_everything
from cacovid.models.resolve import resolve_method
from cacovid.synthetic import world
from cacovid.synthetic.questions import Question
from cacovid.synthetic.tiny.choices import Choice, any_object, asked_object, every_object
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import PreparedSample
from cacovid.types import Prompt, Scores, Selection

#: What knows the truth of the embedded task, by the names that the command line takes.
ORACLES: dict[str, Choice] = {
    "oracle": asked_object,
    "blind-oracle": any_object,
    "blind-oracle-in-turn": every_object,
}


@dataclass(frozen=True)
class Chosen:
    """What a chooser keeps of one sample.

    Args:
        selection: The kept tokens.
        scores: What it thinks of each token; None where it does not score.
        hook: For a method that prunes inside the language model: what the model has to run with;
            `selection` is everything then, as all of it goes in.
    """

    selection: Selection
    scores: Scores | None = None
    hook: LayerHook | None = None

    @property
    def kept(self) -> Selection:
        """`selection`, or what the last layer ran on where a hook pruned inside."""
        return self.selection if self.hook is None else self.hook.selection


class Chooser(Protocol):
    """A way of choosing tokens of one sample."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `Prompt.extras` that it needs."""
        ...

    @property
    def draws(self) -> bool:
        """Whether chance plays in it, so that another seed gives other tokens."""
        ...

    def __call__(
        self, prepared: PreparedSample, retentions: Sequence[float], seed: int
    ) -> list[Chosen]:
        """What is kept at each retention."""
        ...


@dataclass
class MethodChooser:
    """A method.

    Args:
        method: The method.
        name: How tables call it.
    """

    method: Method
    name: str

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `Prompt.extras` that it needs."""
        return self.method.needs

    @property
    def draws(self) -> bool:
        """Whether chance plays in it: the method's `draws`, where it has one."""
        return bool(getattr(self.method, "draws", False))

    def __call__(
        self, prepared: PreparedSample, retentions: Sequence[float], seed: int
    ) -> list[Chosen]:
        """What is kept at each retention; a method that scores does so once.

        Raises:
            InvalidInputError: for NaN scores, or another number of tokens than the budget.
        """
        prompt, method = prepared.prompt, self.method
        if getattr(method, "inside", False):
            hooks = [cast(Any, method)(prompt, r, seed=seed) for r in retentions]
            return [Chosen(keep_everything(prompt), hook=hook) for hook in hooks]
        if isinstance(method, ScoredMethod):
            scores = method.scores(prompt, seed=seed)
            return [self._checked(method.select(scores, prompt, r), scores, prompt, r)
                    for r in retentions]  # fmt: skip
        found = method.scores(prompt, seed=seed)
        return [self._checked(method(prompt, r, seed=seed), found, prompt, r) for r in retentions]

    def _checked(
        self, selection: Selection, scores: Scores | None, prompt: Prompt, retention: float
    ) -> Chosen:
        check_selection(self.method, prompt, retention, selection, scores)
        return Chosen(selection, scores)


@dataclass
class OracleChooser:
    """A choice that is told the truth of the scene.

    Args:
        choice: The choice.
        name: How tables call it.
    """

    choice: Choice
    name: str
    needs: frozenset[str] = frozenset()
    draws: bool = True

    def __call__(
        self, prepared: PreparedSample, retentions: Sequence[float], seed: int
    ) -> list[Chosen]:
        """What is kept at each retention.

        Raises:
            InvalidInputError: for a sample that is no scene of the embedded task, or of which not
                all frames are read.
        """
        sample, grid = prepared.sample, prepared.prompt.grid
        check_oracle(self.name, [sample])
        assert sample.scene is not None
        scene = sample.scene.make()
        if grid.num_tokens != world.CLIP_TOKENS:
            raise InvalidInputError(
                f"{self.name} knows the {world.CLIP_TOKENS} tokens of a whole clip; the model "
                f"reads {grid.num_tokens}. Leave it out where other frames are read"
            )
        evidence = np.array(sample.evidence, dtype=np.int64)
        question = Question(sample.kind, sample.problem, sample.solution, (), (), evidence)
        device = prepared.prompt.embeds.device
        chosen = []
        for retention in retentions:
            (count,) = grid.budgets(retention)
            keep = self.choice(scene, question, count, np.random.default_rng(seed))
            kept = torch.from_numpy(np.sort(keep)).to(device)
            chosen.append(Chosen(Selection(kept, grid, (count,))))
        return chosen


def check_oracle(name: str, samples: Iterable[TrainingSample]) -> None:
    """Refuses questions of which an oracle does not know the truth.

    Raises:
        InvalidInputError: for a sample that is no scene of the embedded task.
    """
    if any(sample.scene is None for sample in samples):
        raise InvalidInputError(
            f"{name} knows the truth of the embedded task's scenes only, and the question is about "
            f"another video; leave {name} out"
        )


@dataclass
class AnotherDraw:
    """A chooser that draws, with other random numbers.

    Args:
        chooser: The chooser.
        number: Of the draw; the chooser itself makes draw 1.
    """

    chooser: Chooser
    number: int

    @property
    def name(self) -> str:
        """How records call it."""
        return f"{self.chooser.name} (draw {self.number})"

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `Prompt.extras` that it needs."""
        return self.chooser.needs

    @property
    def draws(self) -> bool:
        """Whether chance plays in it."""
        return self.chooser.draws

    def __call__(
        self, prepared: PreparedSample, retentions: Sequence[float], seed: int
    ) -> list[Chosen]:
        """What is kept at each retention, by a seed that no question of a first draw has."""
        return self.chooser(prepared, retentions, seed + ((self.number - 1) << 40))


def with_draws(chosen: Sequence[Chooser], draws: int) -> dict[str, list[Chooser]]:
    """The choosers by name, those that draw as often as is asked for.

    Args:
        chosen: The choosers.
        draws: Of each in which chance plays, at least 1.
    """
    more = range(2, draws + 1)
    return {
        chooser.name: [chooser, *(AnotherDraw(chooser, n) for n in more if chooser.draws)]
        for chooser in chosen
    }


def choosers(
    names: Sequence[str], model: nn.Module, policies: Mapping[str, Any] | None = None
) -> list[Chooser]:
    """Choosers by name.

    Args:
        names: Names of methods, of oracles, directories or Hub ids of policies, or names of
            `policies`.
        model: The model.
        policies: Policies or methods that have a name here.

    Raises:
        InvalidInputError: for a name that is none of these, or that stands twice.
    """
    policies = policies or {}
    made: list[Chooser] = []
    for name in names:
        if any(chooser.name == name for chooser in made):
            raise InvalidInputError(f"method {name!r} is named twice; name it once")
        if name in ORACLES:
            made.append(OracleChooser(ORACLES[name], name))
        else:
            made.append(MethodChooser(resolve_method(policies.get(name, name), model), name))
    return made


@dataclass(frozen=True)
class Runnable:
    """Which methods run on a model.

    Args:
        names: Those that do.
        left_out: The others, each with the reason.
    """

    names: tuple[str, ...]
    left_out: dict[str, str]


def runnable(model: nn.Module, try_out: Any, names: Sequence[str] | None = None) -> Runnable:
    """Tries every registered method on a model.

    Args:
        model: The model.
        try_out: Called with each chooser; raises what the chooser raises.
        names: What to try; default: `cacovid.methods.names()`.
    """
    works: list[str] = []
    left_out: dict[str, str] = {}
    for name in methods.names() if names is None else names:
        try:
            (chooser,) = choosers([name], model)
            try_out(chooser)
        except (CacovidError, NotImplementedError) as error:
            left_out[name] = str(error) or type(error).__name__
        else:
            works.append(name)
    return Runnable(tuple(works), left_out)
