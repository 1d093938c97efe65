"""What is compared: methods, and the oracles of the embedded task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError
from cacovid.methods import Method
from cacovid.models.prune import select
from cacovid.models.resolve import resolve_method
from cacovid.synthetic import make_scene
from cacovid.synthetic.questions import Question
from cacovid.synthetic.tiny.choices import Choice, any_object, asked_object, every_object
from cacovid.train.encoding import PreparedSample

#: What knows the truth of the embedded task, by the names that the command line takes.
ORACLES: dict[str, Choice] = {
    "oracle": asked_object,
    "blind-oracle": any_object,
    "blind-oracle-in-turn": every_object,
}


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

    def __call__(self, prepared: PreparedSample, retention: float, seed: int) -> Tensor:
        """`[N]` bool: the kept tokens."""
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

    def __call__(self, prepared: PreparedSample, retention: float, seed: int) -> Tensor:
        """`[N]` bool: the kept tokens."""
        selection, _ = select(self.method, prepared.prompt, retention, seed=seed)
        return selection.mask()


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

    def __call__(self, prepared: PreparedSample, retention: float, seed: int) -> Tensor:
        """`[N]` bool: the kept tokens.

        Raises:
            InvalidInputError: for a sample that is no scene of the embedded task.
        """
        sample, grid = prepared.sample, prepared.prompt.grid
        if sample.scene is None:
            raise InvalidInputError(
                f"{self.name} knows the embedded task only; leave it out with --data"
            )
        ref = sample.scene
        evidence = np.array(sample.evidence, dtype=np.int64)
        question = Question(sample.kind, sample.problem, sample.solution, (), (), evidence)
        keep = self.choice(
            make_scene(ref.split, ref.seed, ref.index),
            question,
            grid.budgets(retention)[0],
            np.random.default_rng(seed),
        )
        mask = torch.zeros(grid.num_tokens, dtype=torch.bool)
        mask[torch.from_numpy(keep)] = True
        return mask.to(prepared.prompt.embeds.device)


def choosers(
    names: list[str], model: nn.Module, policies: dict[str, Any] | None = None
) -> list[Chooser]:
    """Choosers by name.

    Args:
        names: Names of methods, of oracles, directories or Hub ids of policies, or names of
            `policies`.
        model: The model.
        policies: Policies or methods that have a name here.

    Raises:
        InvalidInputError: for a name that is none of these.
    """
    policies = policies or {}
    made: list[Chooser] = []
    for name in names:
        if name in ORACLES:
            made.append(OracleChooser(ORACLES[name], name))
        else:
            made.append(MethodChooser(resolve_method(policies.get(name, name), model), name))
    return made
