"""What a sample's iterations share: the rollouts so far, and the ratio that follows the reward."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.train.limits import check_share
from cacovid.train.rollouts import Rollouts


@dataclass(frozen=True)
class RatioSettings:
    """How the share of kept tokens follows the mean reward of a sample's rollouts.

    Args:
        base: Where every sample starts.
        low: Least share; the effective limit is `min(low, base)`.
        high: Greatest share; the effective limit is `max(high, base)`.
        halve_above: Mean reward from which the share is halved.
        double_below: Mean reward up to which it is doubled.
        dynamic: False keeps `base`.
    """

    base: float = 0.02
    low: float = 0.01
    high: float = 0.12
    halve_above: float = 0.875
    double_below: float = 0.125
    dynamic: bool = True

    def __post_init__(self) -> None:
        check_share(self, "base", "low", "high", section="ratio.")
        if not self.double_below < self.halve_above:
            raise InvalidInputError(
                f"ratio.double_below is {self.double_below} and ratio.halve_above "
                f"{self.halve_above}; expected the first to be less"
            )

    def after(self, ratio: float, mean_reward: float) -> float:
        """The share for the next draw.

        >>> RatioSettings().after(0.02, 0.9), RatioSettings().after(0.08, 0.1)
        (0.01, 0.12)
        """
        if not self.dynamic:
            return ratio
        if mean_reward >= self.halve_above:
            return max(ratio / 2, min(self.low, self.base))
        if mean_reward <= self.double_below:
            return min(2 * ratio, max(self.high, self.base))
        return ratio


@dataclass
class Replay:
    """All rollouts of one sample so far, with their rewards."""

    token_masks: list[Tensor] = field(default_factory=list)
    frame_masks: list[Tensor] = field(default_factory=list)
    token_rewards: list[Tensor] = field(default_factory=list)
    frame_rewards: list[Tensor] = field(default_factory=list)

    def add(self, rollouts: Rollouts, rewards: Tensor) -> None:
        """Appends one draw; `rewards` `[G + G']` as `Rollouts.read` orders them."""
        count = rollouts.token_masks.shape[0]
        self.token_masks.append(rollouts.token_masks)
        self.frame_masks.append(rollouts.frame_masks)
        self.token_rewards.append(rewards[:count])
        self.frame_rewards.append(rewards[count:])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token masks, frame masks, token rewards and frame rewards of all draws."""
        return (
            torch.cat(self.token_masks),
            torch.cat(self.frame_masks),
            torch.cat(self.token_rewards),
            torch.cat(self.frame_rewards),
        )
