"""What an objective offers the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from cacovid.train.encoding import PreparedSample
from cacovid.types import Scores


@dataclass(frozen=True)
class Update:
    """One update of one sample.

    Args:
        loss: A scalar with gradients.
        metrics: Numbers for the log, averaged over samples.
    """

    loss: Tensor
    metrics: dict[str, float]


class Progress:
    """What the updates of one sample share; every objective has its own kind."""

    prepared: Any


class Objective(Protocol):
    """A way to train a policy on a sample."""

    @property
    def updates(self) -> int:
        """Updates of a sample."""
        ...

    def prepare(self, sample: Any) -> PreparedSample:
        """Reads and embeds a sample."""
        ...

    def begin(self, prepared: PreparedSample, seed: int) -> Progress:
        """What the updates of one sample share."""
        ...

    def update(self, scores: Scores, progress: Progress) -> Update:
        """The loss of one update."""
        ...
