"""Greedy selection at a fixed share of tokens: what training is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cacovid.errors import VideoReadError
from cacovid.methods import Method
from cacovid.models.prune import select
from cacovid.train.data import TrainingSample
from cacovid.train.rewards import RewardBackend


@dataclass(frozen=True)
class Evaluation:
    """Marks of a method on some samples.

    Args:
        marks: One per sample, in [0, 1].
        kinds: Each sample's finer type.
        unreadable: `(id, reason)` of samples whose video cannot be read; they have no mark.
    """

    marks: tuple[float, ...]
    kinds: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean mark."""
        return sum(self.marks) / max(1, len(self.marks))


@torch.no_grad()
def evaluate_greedy(
    method: Method,
    reward: RewardBackend,
    samples: Sequence[TrainingSample],
    retention: float,
    seed: int = 0,
) -> Evaluation:
    """Marks the answers from the tokens that a method keeps.

    Args:
        method: Chooses the tokens.
        reward: Marks them.
        samples: Questions.
        retention: Share of the video tokens kept, in (0, 1].
        seed: Of methods that draw; question `i` is drawn with `seed + i`.

    Raises:
        VideoReadError: if none of the videos can be read.
    """
    marks: list[float] = []
    kinds: list[str] = []
    unreadable: list[tuple[str, str]] = []
    for number, sample in enumerate(samples):
        try:
            prepared = reward.prepare(sample)
        except VideoReadError as error:
            unreadable.append((sample.id, str(error)))
            continue
        selection, _ = select(method, prepared.prompt, retention, seed=seed + number)
        marks.append(float(reward(prepared, selection.mask()[None]).correct[0]))
        kinds.append(sample.kind)
    if unreadable and not marks:
        raise VideoReadError(
            f"none of the {len(unreadable)} videos to evaluate on can be read: {unreadable[0][1]}"
        )
    return Evaluation(tuple(marks), tuple(kinds), tuple(unreadable))
