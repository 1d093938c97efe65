"""The loss of combinatorial policy optimisation, ALGORITHMS 1.4 (CaCoVID, arXiv 2602.01649)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cacovid.errors import InvalidInputError

_ADVANTAGE_EPSILON = 1e-4
_WEIGHT_EPSILON = 1e-7


class Loss(NamedTuple):
    """`total = token + frame`, scalars."""

    total: Tensor
    token: Tensor
    frame: Tensor


def cpo_loss(
    token_scores: Tensor,
    frame_scores: Tensor,
    old_token_scores: Tensor,
    old_frame_scores: Tensor,
    token_masks: Tensor,
    frame_masks: Tensor,
    token_rewards: Tensor,
    frame_rewards: Tensor,
    *,
    clip: tuple[float, float] = (0.2, 0.28),
    kl_weight: float = 0.0,
) -> Loss:
    """Clipped policy-gradient loss over the rollouts of one sample.

    With `A = (R - mean R) / (std R + 1e-4)` (unbiased; 0 for a single rollout) and the ratio
    `rho = exp(log pi(bit) - log pi_old(bit))`, each bit costs
    `-min(rho A, clip(rho, 1 - low, 1 + high) A)`. Kept token bits weigh `1 - m`, dropped ones `m`,
    `m` being the rollout's kept share; frame bits weigh the same.

    Args:
        token_scores: `[N]` float, `log pi(keep) = logsigmoid(score)`; differentiable.
        frame_scores: `[F]` float; differentiable. Without frame rollouts `[0]`, with masks `[0, 0]`
            and rewards `[0]`: the frames' part is then 0.
        old_token_scores: `[N]`, the scores that the rollouts were drawn from.
        old_frame_scores: `[F]`, likewise.
        token_masks: `[G, N]` bool, True where a token was kept.
        frame_masks: `[G', F]` bool, True where a frame was drawn.
        token_rewards: `[G]` float; one that is NaN or infinite makes the loss NaN.
        frame_rewards: `[G']` float, likewise.
        clip: How far below 1, in [0, 1], and above 1, at least 0, the ratio counts.
        kl_weight: Weight of `exp(log 1/2 - log pi) - (log 1/2 - log pi) - 1`.

    Returns:
        `Loss(total, token, frame)` in float32, or float64 for scores in float64.

    Raises:
        InvalidInputError: for shapes that do not fit, scores without rollouts, or a clip out of
            range.
    """
    check_clip(clip)
    token = _part(
        "token", token_scores, old_token_scores, token_masks, token_rewards, clip, kl_weight, True
    )
    frame = _part(
        "frame", frame_scores, old_frame_scores, frame_masks, frame_rewards, clip, kl_weight, False
    )
    return Loss(token + frame, token, frame)


def check_clip(clip: tuple[float, float]) -> None:
    """Raises:
    InvalidInputError: unless `clip` is two numbers that leave an interval around 1.
    """
    low, high = clip if len(clip) == 2 else (math.nan, math.nan)
    if not (0.0 <= low <= 1.0 and 0.0 <= high < math.inf):
        raise InvalidInputError(
            f"clip is {tuple(clip)}; expected two numbers: how far the probability ratio counts "
            f"below 1, in [0, 1], and above it, at least 0"
        )


def check_part(name: str, scores: Tensor, old: Tensor, masks: Tensor, rewards: Tensor) -> None:
    """Raises:
    InvalidInputError: for shapes, dtypes or devices that do not fit each other, or no rollouts.
    """
    if not scores.is_floating_point():
        raise InvalidInputError(f"{name} scores are {scores.dtype}; expected floating point scores")
    for what, tensor in (("old scores", old), ("masks", masks), ("rewards", rewards)):
        if tensor.device != scores.device:
            raise InvalidInputError(
                f"{name} scores are on {scores.device} and their {what} on {tensor.device}; move "
                f"them to one device"
            )
    if (
        scores.dim() != 1
        or scores.shape != old.shape
        or masks.dim() != 2
        or masks.shape != (rewards.numel(), scores.numel())
    ):
        raise InvalidInputError(
            f"{name} scores {tuple(scores.shape)}, old scores {tuple(old.shape)}, masks "
            f"{tuple(masks.shape)} and rewards {tuple(rewards.shape)} do not fit; expected [n], "
            f"[n], [G, n] and [G]"
        )
    if not masks.numel() and (name == "token" or masks.shape != (0, 0)):
        no_part = "; without frame rollouts, scores [0] and masks [0, 0]" if name == "frame" else ""
        raise InvalidInputError(
            f"{name} masks are {tuple(masks.shape)}: {masks.shape[0]} rollouts of "
            f"{masks.shape[1]} scores; expected [G, n], G >= 1 and n >= 1{no_part}"
        )


def _part(
    name: str,
    scores: Tensor,
    old: Tensor,
    masks: Tensor,
    rewards: Tensor,
    clip: tuple[float, float],
    kl_weight: float,
    balanced: bool,
) -> Tensor:
    check_part(name, scores, old, masks, rewards)
    if not masks.numel():
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).sum()
    # In half precision rewards that differ by little are the same, or have another mean than 0.
    scores, old = (s.to(torch.promote_types(s.dtype, torch.float32)) for s in (scores, old))
    kept = masks.bool()
    rewards = rewards.to(scores.dtype)
    spread = rewards.std() if rewards.numel() > 1 else rewards.new_zeros(())
    advantage = ((rewards - rewards.mean()) / (spread + _ADVANTAGE_EPSILON))[:, None]
    now = torch.where(kept, F.logsigmoid(scores), F.logsigmoid(-scores))
    before = torch.where(kept, F.logsigmoid(old), F.logsigmoid(-old)).detach()
    ratio = (now - before).exp()
    each = -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip[0], 1.0 + clip[1]) * advantage)
    if kl_weight:
        away = math.log(0.5) - now
        each = each + kl_weight * (away.exp() - away - 1.0)
    if not balanced:
        return each.mean(dim=1).mean()
    share = kept.to(scores.dtype).mean(dim=1, keepdim=True)
    weight = torch.where(kept, 1.0 - share, share)
    return ((each * weight).sum(dim=1) / (weight.sum(dim=1) + _WEIGHT_EPSILON)).mean()


def part_and_gradient(
    scores: Tensor,
    old: Tensor,
    masks: Tensor,
    rewards: Tensor,
    clip: tuple[float, float],
    kl_weight: float,
    balanced: bool,
) -> tuple[Tensor, Tensor]:
    """One part of the loss and its gradient in closed form, for where autograd cannot reach.

    `d each / d score = (-A rho [the ratio itself is the minimum] + kl (1 - exp(log 1/2 - log pi)))
    * d log pi / d score`, the last being `1 - sigmoid(score)` for a kept bit, `-sigmoid(score)`
    for a dropped one.

    Args:
        scores: `[n]` float32 or float64.
        old: `[n]`.
        masks: `[G, n]` bool.
        rewards: `[G]`.
        clip: As in `cpo_loss`.
        kl_weight: As in `cpo_loss`.
        balanced: Whether kept bits weigh `1 - m` and dropped ones `m`.

    Returns:
        The loss, a scalar, and the gradient `[n]`.
    """
    loss = _part("part", scores, old, masks, rewards, clip, kl_weight, balanced)
    kept = masks.bool()
    rewards = rewards.to(scores.dtype)
    spread = rewards.std() if rewards.numel() > 1 else rewards.new_zeros(())
    advantage = ((rewards - rewards.mean()) / (spread + _ADVANTAGE_EPSILON))[:, None]
    now = torch.where(kept, F.logsigmoid(scores), F.logsigmoid(-scores))
    before = torch.where(kept, F.logsigmoid(old), F.logsigmoid(-old))
    ratio = (now - before).exp()
    itself = torch.where(advantage >= 0, ratio <= 1.0 + clip[1], ratio >= 1.0 - clip[0])
    each = -advantage * ratio * itself
    if kl_weight:
        each = each + kl_weight * (1.0 - (math.log(0.5) - now).exp())
    each = each * torch.where(kept, torch.sigmoid(-scores), -torch.sigmoid(scores))
    if not balanced:
        return loss, each.mean(dim=0) / each.shape[1]
    share = kept.to(scores.dtype).mean(dim=1, keepdim=True)
    weight = torch.where(kept, 1.0 - share, share)
    weight = weight / (weight.sum(dim=1, keepdim=True) + _WEIGHT_EPSILON)
    return loss, (each * weight).mean(dim=0)
