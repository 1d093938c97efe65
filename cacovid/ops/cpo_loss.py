"""The loss of combinatorial policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.ops import _arguments, _registry
from cacovid.reference.cpo_loss import Loss as _Loss
from cacovid.reference.cpo_loss import check_clip, check_part, part_and_gradient
from cacovid.reference.cpo_loss import cpo_loss as cpo_loss_reference

if TYPE_CHECKING:
    from cacovid.reference import Loss


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
    2602.01649). Differentiable with respect to the scores, once: compiled forms compute the
    gradient together with the loss, in one reading of the masks. Deterministic. Scores that are
    not float32 are served by the reference.

    Args:
        token_scores: `[N]` float, the policy's present scores; `log pi(keep) = logsigmoid(score)`.
        frame_scores: `[F]` float; without frame rollouts `[0]`, with masks `[0, 0]` and rewards
            `[0]`: the frames' part is then 0.
        old_token_scores: `[N]`, scores that the rollouts were drawn from.
        old_frame_scores: `[F]`, likewise.
        token_masks: `[G, N]` bool, True where a token was kept.
        frame_masks: `[G', F]` bool, True where a frame was drawn.
        token_rewards: `[G]` float; one that is NaN or infinite makes the loss NaN.
        frame_rewards: `[G']` float, likewise.
        clip: How far below 1, in [0, 1], and above 1, at least 0, the probability ratio counts.
        kl_weight: Weight of the divergence from the uninformed policy.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `Loss(total, token, frame)`, scalars in float32, or float64 for scores in float64.

    Raises:
        InvalidInputError: for shapes, dtypes or devices that do not fit, scores without rollouts, a
            clip out of range, or a backend that is not to be had.
    """
    tensors = (
        token_scores,
        frame_scores,
        old_token_scores,
        old_frame_scores,
        token_masks,
        frame_masks,
        token_rewards,
        frame_rewards,
    )
    check_part("token", *tensors[0::2])
    check_part("frame", *tensors[1::2])
    check_clip(clip)
    _arguments.same_device(token_scores, frame_scores, "token_scores", "frame_scores")
    form = _SPEC.choose(token_scores.device, backend)
    if form != "reference" and not _has_form(tensors):
        if backend is not None:
            raise InvalidInputError(
                f"backend {backend!r} of cpo_loss takes scores in float32 and at least one rollout "
                f"and one score; got {token_scores.dtype} {tuple(token_masks.shape)} and "
                f"{frame_scores.dtype} {tuple(frame_masks.shape)}"
            )
        form = "reference"
    if form == "reference":
        return cpo_loss_reference(*tensors, clip=clip, kl_weight=kl_weight)
    given = (
        *tensors[:2],
        *(t.detach().float() for t in tensors[2:4]),
        *(t.bool() for t in tensors[4:6]),
        *(t.detach().flatten().float() for t in tensors[6:]),
        float(clip[0]),
        float(clip[1]),
        float(kl_weight),
    )
    if torch.is_grad_enabled() and (token_scores.requires_grad or frame_scores.requires_grad):
        token, frame = _CpoLoss.apply(*given)
    else:
        token, frame = _registry.call(_OP, *given)[0].unbind()
    return _Loss(token + frame, token, frame)


class _CpoLoss(torch.autograd.Function):
    """Outside the op, which returns the gradients with the losses."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        losses, token, frame = _registry.call(_OP, *arguments)
        ctx.save_for_backward(token, frame)
        ctx.arguments = len(arguments)
        return losses[0].clone(), losses[1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        token, frame = ctx.saved_tensors
        return (token * grads[0], frame * grads[1], *(None for _ in range(ctx.arguments - 2)))


def _has_form(tensors: tuple[Tensor, ...]) -> bool:
    return all(t.dtype == torch.float32 for t in tensors[:2]) and all(
        t.numel() > 0 for t in tensors
    )


def _reference(
    token_scores: Tensor,
    frame_scores: Tensor,
    old_token_scores: Tensor,
    old_frame_scores: Tensor,
    token_masks: Tensor,
    frame_masks: Tensor,
    token_rewards: Tensor,
    frame_rewards: Tensor,
    low: float,
    high: float,
    kl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for scores, old, masks, rewards, balanced in (
        (token_scores, old_token_scores, token_masks, token_rewards, True),
        (frame_scores, old_frame_scores, frame_masks, frame_rewards, False),
    ):
        found.append(
            part_and_gradient(scores, old, masks, rewards, (low, high), kl_weight, balanced)
        )
    return torch.stack([found[0][0], found[1][0]]), found[0][1], found[1][1]


def _fake(token_scores: Tensor, frame_scores: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        token_scores.new_empty(2),
        token_scores.new_empty(token_scores.shape),
        frame_scores.new_empty(frame_scores.shape),
    )


_SPEC, _OP = _registry.define(
    "cpo_loss",
    "(Tensor token_scores, Tensor frame_scores, Tensor old_token_scores, Tensor old_frame_scores, "
    "Tensor token_masks, Tensor frame_masks, Tensor token_rewards, Tensor frame_rewards, "
    "float low, float high, float kl_weight) -> (Tensor, Tensor, Tensor)",
    backends=("cuda", "cpu"),
    reference=_reference,
    fake=_fake,
)
