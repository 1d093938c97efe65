"""The law of the token rollouts, ALGORITHMS 1.3, in float64.

`ocss_sample` draws by it in integers, bit for bit the same on every backend; here it is stated
as probabilities, for the tests of those draws and for readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference._checks import ratios
from cacovid.reference.clip_max import clip_max
from cacovid.reference.ocss import subspace_cap, subspace_count, subspace_starts
from cacovid.types import Grid

#: Added to denominators as published: a sub-space of vanishing mass becomes uniform.
_EPSILON = 1e-8


@dataclass(frozen=True)
class Subspaces:
    """How one frame of `n` tokens is cut into `l` sub-spaces, and what is drawn with what weight.

    Args:
        order: `[n]` int64: the token at each rank, descending by score.
        sizes: `[l]` int64: tokens of each sub-space; the first holds the first ranks.
        probabilities: `[l]` float64, 1 in sum: chance of each sub-space.
        weights: `[l, n]` float64, each row 1 in sum: within a sub-space, the weight with which
            each token (by its index in the frame, not by rank) is drawn without replacement; 0 for
            the tokens of the other sub-spaces.
    """

    order: Tensor
    sizes: Tensor
    probabilities: Tensor
    weights: Tensor


def subspaces(
    token_scores: Tensor,
    ratio: float,
    *,
    subspace_factor: float = 2.0,
    max_subspace_prob: float | None = None,
) -> Subspaces:
    """The sub-spaces of one frame.

    With `p = softmax(scores)` sorted descending: `l = min(n, max(floor(1/(lambda*r)), 1))`
    contiguous sub-spaces, the first `n mod l` one longer; their masses through `clip_max`; within
    each, `p / (sum p + 1e-8)` clamped to `[0.5/e, 2/e]`, `e = n // l`, and normalised again, by the
    sum + 1e-8 as published (CaCoVID, arXiv 2602.01649).

    Args:
        token_scores: `[n]` float, finite. Ties rank by the lowest index.
        ratio: `r`, in (0, 1].
        subspace_factor: `lambda`, more than 0.
        max_subspace_prob: Cap on a sub-space's probability; by default `clip(2/l, 0.1, 0.9)`.

    Returns:
        The sub-spaces, on the scores' device. Deterministic; no gradient.

    Raises:
        InvalidInputError: for scores that are not `[n]`, finite and floating point, and settings
            out of range.

    >>> s = subspaces(torch.tensor([0.0, 2.0, 1.0, 3.0]), 0.25)
    >>> s.order.tolist(), s.sizes.tolist()
    ([3, 1, 2, 0], [2, 2])
    """
    if token_scores.dim() != 1 or not token_scores.numel() or not token_scores.is_floating_point():
        raise InvalidInputError(
            f"token_scores are {tuple(token_scores.shape)} {token_scores.dtype}; expected [n] "
            f"floating point, the scores of one frame"
        )
    if not bool(torch.isfinite(token_scores).all()):
        raise InvalidInputError("token_scores have NaN or infinite values; expected finite scores")
    if not subspace_factor > 0.0:
        raise InvalidInputError(f"subspace_factor is {subspace_factor}; expected more than 0")
    n, device = token_scores.numel(), token_scores.device
    (ratio,) = ratios(Grid([(1, 1, n)]), ratio, "ratio")
    count = subspace_count(n, ratio, subspace_factor)
    cap = subspace_cap(count, max_subspace_prob)
    starts = torch.tensor(subspace_starts(n, count), device=device)
    sizes = starts.diff()
    member_of = torch.repeat_interleave(torch.arange(count, device=device), sizes)

    scores = token_scores.detach().to(torch.float64)
    order = torch.sort(scores, descending=True, stable=True).indices
    p = torch.softmax(scores, 0)[order]
    masses = torch.zeros_like(p[:count]).index_add_(0, member_of, p)
    probabilities = clip_max(masses, cap)

    each = n // count
    within = (p / (masses + _EPSILON)[member_of]).clamp(0.5 / each, 2.0 / each)
    sums = torch.zeros_like(masses).index_add_(0, member_of, within)
    weights = p.new_zeros(count, n)
    weights[member_of, order] = within / (sums + _EPSILON)[member_of]
    return Subspaces(order, sizes, probabilities, weights)
