"""Combinatorial policy optimisation of one sample (CaCoVID, arXiv 2602.01649)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cacovid import ops
from cacovid.errors import InvalidInputError
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import PreparedSample
from cacovid.train.limits import check_at_least
from cacovid.train.objective import Progress, Update
from cacovid.train.replay import RatioSettings, Replay
from cacovid.train.rewards import RewardBackend
from cacovid.train.rollouts import RolloutSettings, draw_rollouts
from cacovid.types import Scores


@dataclass(frozen=True)
class CPOSettings:
    """Settings of the objective.

    Args:
        rollouts: How combinations are drawn.
        ratio: How many tokens they keep.
        updates: Updates of a sample from its frozen first scores.
        clip: How far below and above 1 the probability ratio counts.
        kl_weight: Weight of the divergence from the uninformed policy.
        spread_weight: Weight of the mean squared score, which holds the scale of the scores
            (*ours*: without it scores grow as long as rewards differ).
        keep_logit: Log-odds of keeping a token whose score is 0: the loss reads
            `sigmoid(score + keep_logit)`. 0 as published. Rollouts keep few tokens; where such
            log-odds are far below 0, every kept token has the same say in the gradient. At 0,
            tokens with high scores, which are nearly sure to be kept, have next to none, and
            the noise of the others is all there is (*ours*). `kl_weight` then pulls scores
            towards `-keep_logit`, where keeping is even.
    """

    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    ratio: RatioSettings = field(default_factory=RatioSettings)
    updates: int = 5
    clip: tuple[float, float] = (0.2, 0.28)
    kl_weight: float = 0.0
    spread_weight: float = 0.0
    keep_logit: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "updates", section="cpo.")
        check_at_least(self, 0, "kl_weight", "spread_weight", section="cpo.")
        low, high = self.clip if len(self.clip) == 2 else (math.nan, math.nan)
        if not (0.0 < low <= 1.0 and 0.0 < high < math.inf):
            raise InvalidInputError(
                f"cpo.clip is {self.clip}; expected two numbers: how far the probability ratio "
                f"counts below 1, in (0, 1], and above it, more than 0"
            )
        if not math.isfinite(self.keep_logit):
            raise InvalidInputError(f"cpo.keep_logit is {self.keep_logit}; expected a number")


class CPO:
    """The objective: draws rollouts, has them marked, and computes the loss on the replay.

    Args:
        reward: Marks rollouts.
        settings: Settings.
    """

    def __init__(self, reward: RewardBackend, settings: CPOSettings) -> None:
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
        return CPOProgress(prepared, seed, Replay(), self.settings.ratio.base)

    def update(self, scores: Scores, progress: Progress) -> Update:
        """Draws, marks and computes the loss of one update of one sample.

        Args:
            scores: The policy's present scores of the sample, with gradients.
            progress: What `begin` returned; grows with every update.
        """
        assert isinstance(progress, CPOProgress)
        own = self.settings
        if progress.old is None:
            frame = None if scores.frame is None else scores.frame.detach()
            progress.old = Scores(scores.token.detach(), frame)
        rollouts = draw_rollouts(
            progress.old,
            progress.prepared.prompt,
            progress.ratio,
            own.rollouts,
            seed=progress.seed,
            draw=progress.draws,
        )
        rewards = self.reward(progress.prepared, rollouts.read)
        progress.draws += 1
        progress.replay.add(rollouts, rewards.value)
        progress.correct.append(rewards.correct[: len(rollouts.token_masks)])
        used_ratio = progress.ratio
        progress.ratio = own.ratio.after(used_ratio, float(torch.cat(progress.correct).mean()))
        loss, varied = self._loss(scores, progress)
        return Update(
            loss=loss,
            metrics={
                "reward": float(rewards.correct[: len(rollouts.token_masks)].mean()),
                "ratio": used_ratio,
                "zero_variance": 0.0 if varied else 1.0,
            },
        )

    def _loss(self, scores: Scores, progress: CPOProgress) -> tuple[Tensor, bool]:
        masks, frame_masks, rewards, frame_rewards = progress.replay.tensors()
        old, own = progress.old, self.settings
        assert old is not None
        frame_scores, old_frames = scores.frame, old.frame
        if frame_scores is None or old_frames is None or not len(frame_masks):
            # No frame was drawn, or none has a score: a part of nothing, which is 0.
            frame_scores, old_frames = scores.token[:0], old.token[:0]
            frame_masks = frame_masks[:0, :0]
            frame_rewards = frame_rewards[:0]
        result = ops.cpo_loss(
            scores.token + own.keep_logit,
            frame_scores,
            old.token + own.keep_logit,
            old_frames,
            masks,
            frame_masks,
            rewards,
            frame_rewards,
            clip=own.clip,
            kl_weight=own.kl_weight,
        )
        loss = result.total
        if own.spread_weight:
            loss = loss + own.spread_weight * scores.token.square().mean()
            if scores.frame is not None:
                loss = loss + own.spread_weight * scores.frame.square().mean()
        varied = bool((rewards != rewards[0]).any())
        if len(frame_rewards):
            varied = varied or bool((frame_rewards != frame_rewards[0]).any())
        return loss, varied


@dataclass
class CPOProgress(Progress):
    """Replay, ratio and old scores of one sample."""

    prepared: PreparedSample
    seed: int
    replay: Replay
    ratio: float
    draws: int = 0
    old: Scores | None = None
    correct: list[Tensor] = field(default_factory=list)
