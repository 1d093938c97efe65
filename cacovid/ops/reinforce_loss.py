"""The loss of REINFORCE over independent bits."""

from __future__ import annotations

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry

_SPEC = _registry.reference_only("reinforce_loss")


def reinforce_loss(
    logits: Tensor, masks: Tensor, advantages: Tensor, *, backend: str | None = None
) -> Tensor:
    """`-(1/G) sum over rollouts of A_g * mean over tokens of log pi(bit)`.

    `log pi(keep) = logsigmoid(logit)`, `log pi(drop) = logsigmoid(-logit)` (SCORE, arXiv
    2603.26365). Plain REINFORCE: no ratio, no clip; the masks have to be drawn from these logits.
    Deterministic; differentiable with respect to the logits, twice too. A few kernels of PyTorch on
    `[G, N]`, next to which the rewards' forward is everything, so that there is no compiled form.

    Args:
        logits: `[N]` float, the policy's scores.
        masks: `[G, N]` bool, True where a token was kept, as `bernoulli_sample` returns them.
        advantages: `[G]` float; no gradient flows to them.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        The loss, a scalar in the dtype of the logits.

    Raises:
        InvalidInputError: for shapes that do not fit, or a backend that is not to be had.

    >>> import torch
    >>> logits = torch.zeros(2, requires_grad=True)
    >>> loss = reinforce_loss(logits, torch.tensor([[True, False]]), torch.tensor([1.0]))
    >>> torch.autograd.grad(loss, logits)[0].tolist()
    [-0.25, 0.25]
    """
    _SPEC.choose(logits.device, backend)
    return reference.reinforce_loss(logits, masks, advantages)
