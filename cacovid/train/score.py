"""SCORE of one sample: Bernoulli rollouts, teacher-forced cross-entropy, split advantages.

arXiv 2603.26365; ALGORITHMS 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from cacovid import ops
from cacovid.errors import InvalidInputError
from cacovid.train.advantages import Reading, split_advantages
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import PreparedSample
from cacovid.train.objective import Progress, Update
from cacovid.train.rewards import TargetBackend
from cacovid.types import Scores


@dataclass(frozen=True)
class SCORESettings:
    """Settings of the objective.

    Args:
        rollouts: Masks of an update.
        updates: Updates of a sample, each with masks of its own; plain REINFORCE has no ratio that
            would allow old ones.
        margin: What the cross-entropy may rise by, in nats per target token, before a rollout
            counts as failed; 0 is the paper's drawing.
        reading: Which reading of the paper's advantage; see `split_advantages`.
        penalty_weight: `beta`, of failed rollouts in the reading `"sparsity"`.
        spread_weight: Weight of the mean squared score, which keeps the probabilities away from 0
            and 1 (*ours*).
    """

    rollouts: int = 16
    updates: int = 1
    margin: float = 0.02
    reading: Reading = "sparsity"
    penalty_weight: float = 1.0
    spread_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise InvalidInputError(
                f"score.rollouts is {self.rollouts}; expected at least 2: advantages compare "
                f"rollouts with each other"
            )
        if self.updates < 1:
            raise InvalidInputError(f"score.updates is {self.updates}; expected at least 1")
        if self.reading not in get_args(Reading):
            raise InvalidInputError(
                f"score.reading is {self.reading!r}; expected one of {', '.join(get_args(Reading))}"
            )
        for name in ("margin", "penalty_weight", "spread_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InvalidInputError(
                    f"score.{name} is {getattr(self, name)}; expected a number of at least 0"
                )


class SCORE:
    """The objective: draws masks, has the target's cross-entropy told, and computes the loss.

    Args:
        reward: Tells the cross-entropy of the target from kept tokens.
        settings: Settings.
    """

    def __init__(self, reward: TargetBackend, settings: SCORESettings) -> None:
        self.reward = reward
        self.settings = settings

    @property
    def updates(self) -> int:
        """Updates of a sample."""
        return self.settings.updates

    def prepare(self, sample: TrainingSample) -> PreparedSample:
        """Reads and embeds a sample."""
        return self.reward.prepare(sample)

    def begin(self, prepared: PreparedSample, seed: int) -> Progress:
        """What the updates of one sample share."""
        return SCOREProgress(prepared, seed)

    def update(self, scores: Scores, progress: Progress) -> Update:
        """Draws, has the target read, and computes the loss of one update of one sample.

        The first update reads the target from all tokens too, in the same batch.

        Args:
            scores: The policy's present scores of the sample, with gradients.
            progress: What `begin` returned.
        """
        assert isinstance(progress, SCOREProgress)
        own, logits = self.settings, scores.token
        masks = ops.bernoulli_sample(
            logits.detach(), own.rollouts, seed=progress.seed, offset=progress.draws
        )
        masks, emptied = with_a_token(masks, logits.detach())
        progress.draws += 1
        read = masks
        if progress.base is None:
            read = torch.cat((masks, torch.ones_like(masks[:1])))
        told = self.reward.read_target(progress.prepared, read)
        if progress.base is None:
            progress.base = told.cross_entropy[-1]
        surplus = progress.base - told.cross_entropy[: own.rollouts] + own.margin
        kept = masks.float().mean(dim=1)
        advantages = split_advantages(
            surplus, 1.0 - kept, reading=own.reading, penalty_weight=own.penalty_weight
        )
        loss = ops.reinforce_loss(logits, masks, advantages)
        varied = bool(((surplus != surplus[0]) | (kept != kept[0])).any())
        if own.spread_weight:
            loss = loss + own.spread_weight * logits.square().mean()
        return Update(
            loss=loss,
            metrics={
                "reward": float(told.correct[: own.rollouts].mean()),
                "safe": float((surplus > 0).float().mean()),
                "kept": float(kept.mean()),
                "surplus": float(surplus.mean()),
                "emptied": emptied,
                "zero_variance": float(not (varied and bool(advantages.any()))),
            },
        )


@dataclass
class SCOREProgress(Progress):
    """Draws of one sample so far, and the cross-entropy of its target from all tokens."""

    prepared: PreparedSample
    seed: int
    draws: int = 0
    base: Tensor | None = None


def with_a_token(masks: Tensor, logits: Tensor) -> tuple[Tensor, float]:
    """Masks that keep at least one token: where none is kept, the one of the highest score.

    A prompt without any video token is another prompt; such masks are drawn when all probabilities
    are near 0 (*ours*).

    Args:
        masks: `[G, N]` bool.
        logits: `[N]`.

    Returns:
        `[G, N]` bool, and the share of masks that were changed.
    """
    empty = ~masks.any(dim=1)
    best = torch.zeros_like(masks[0])
    best[logits.argmax()] = True
    return masks | (empty[:, None] & best), float(empty.float().mean())
