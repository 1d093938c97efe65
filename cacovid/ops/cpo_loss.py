"""The loss of combinatorial policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry

if TYPE_CHECKING:
    from cacovid.reference import Loss

_SPEC = _registry.reference_only("cpo_loss")


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
    backend: str | None = None,
) -> Loss:
    """Clipped policy-gradient loss over the rollouts of one sample (replay included).

    Advantages are the rewards, centred and divided by their unbiased standard deviation plus
    1e-4; a rollout's tokens are weighted so that kept and dropped bits count alike (CaCoVID, arXiv
    2602.01649). Differentiable with respect to the scores.

    Args:
        token_scores: `[N]` float, the policy's present scores; `log pi(keep) = logsigmoid(score)`.
        frame_scores: `[F]` float.
        old_token_scores: `[N]`, scores that the rollouts were drawn from.
        old_frame_scores: `[F]`, likewise.
        token_masks: `[G, N]` bool, True where a token was kept.
        frame_masks: `[G', F]` bool, True where a frame was drawn.
        token_rewards: `[G]` float.
        frame_rewards: `[G']` float.
        clip: How far below and above 1 the probability ratio counts.
        kl_weight: Weight of the divergence from the uninformed policy.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `Loss(total, token, frame)`, scalars.

    Raises:
        InvalidInputError: for shapes that do not fit, or a backend that is not to be had.
    """
    _SPEC.choose(token_scores.device, backend)
    return reference.cpo_loss(
        token_scores,
        frame_scores,
        old_token_scores,
        old_frame_scores,
        token_masks,
        frame_masks,
        token_rewards,
        frame_rewards,
        clip=clip,
        kl_weight=kl_weight,
    )
