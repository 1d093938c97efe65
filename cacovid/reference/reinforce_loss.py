"""The loss of REINFORCE over independent bits, ALGORITHMS 2.2 (SCORE, arXiv 2603.26365)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cacovid.errors import InvalidInputError


def reinforce_loss(logits: Tensor, masks: Tensor, advantages: Tensor) -> Tensor:
    """`-(1/G) sum over rollouts of A_g * mean over tokens of log pi(bit)`.

    `log pi(keep) = logsigmoid(logit)`, `log pi(drop) = logsigmoid(-logit)`. Plain REINFORCE: no
    ratio, no clip; the masks have to be drawn from these logits. Deterministic; differentiable
    with respect to the logits, twice too.

    Args:
        logits: `[N]` float, the policy's scores.
        masks: `[G, N]` bool, True where a token was kept.
        advantages: `[G]` float; no gradient flows to them.

    Returns:
        The loss, a scalar in the dtype of the logits.

    Raises:
        InvalidInputError: for shapes that do not fit.

    >>> logits = torch.zeros(2, requires_grad=True)
    >>> loss = reinforce_loss(logits, torch.tensor([[True, False]]), torch.tensor([1.0]))
    >>> torch.autograd.grad(loss, logits)[0].tolist()
    [-0.25, 0.25]
    """
    check_reinforce(logits, masks, advantages)
    log_probability = torch.where(masks.bool(), F.logsigmoid(logits), F.logsigmoid(-logits))
    return -(advantages.detach().to(logits.dtype) * log_probability.mean(dim=1)).mean()


def check_reinforce(logits: Tensor, masks: Tensor, advantages: Tensor) -> None:
    """Raises:
    InvalidInputError: for shapes that do not fit each other, or another device.
    """
    if logits.dim() != 1 or not logits.numel() or not logits.is_floating_point():
        raise InvalidInputError(
            f"logits are {tuple(logits.shape)} {logits.dtype}; expected floating point [N], N >= 1"
        )
    if (
        masks.dim() != 2
        or advantages.dim() != 1
        or not advantages.numel()
        or masks.shape != (advantages.numel(), logits.numel())
    ):
        raise InvalidInputError(
            f"logits {tuple(logits.shape)}, masks {tuple(masks.shape)} and advantages "
            f"{tuple(advantages.shape)} do not fit; expected [N], [G, N] and [G], G >= 1"
        )
    for name, tensor in (("masks", masks), ("advantages", advantages)):
        if tensor.device != logits.device:
            raise InvalidInputError(
                f"logits are on {logits.device} and {name} on {tensor.device}; move them to one "
                f"device"
            )
