"""Split advantages: rollouts that hold the answer compete in sparsity, the others are punished.

SCORE (arXiv 2603.26365), ALGORITHMS 2.2. The paper can be read in two ways; both are here.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError

#: Readings of the paper; see `split_advantages`.
Reading: TypeAlias = Literal["sparsity", "surplus"]

_EPSILON = 1e-4


def split_advantages(
    surplus: Tensor,
    sparsity: Tensor,
    *,
    reading: Reading = "sparsity",
    penalty_weight: float = 1.0,
) -> Tensor:
    """Advantages of a group of rollouts of one sample.

    A rollout is *safe* where its surplus is above 0. With `s` the sparsity and `d` the surplus:

    - `"sparsity"`: safe `(s - mean) / (std + 1e-4)`, else `-penalty_weight * s`;
    - `"surplus"`: `r = s * d`; safe `(r - mean) / (std + 1e-4)`, else `r`, which is negative.

    Mean and (unbiased) standard deviation are those of the safe rollouts; one that is safe alone
    has the advantage 0, and so have safe ones of one and the same value, whose mean may differ from
    it by rounding.

    Args:
        surplus: `[G]` float: cross-entropy from all tokens, less that from the kept ones, and the
            margin.
        sparsity: `[G]` float in [0, 1]: share of the tokens that were dropped.
        reading: `"sparsity"` or `"surplus"`.
        penalty_weight: `beta` of the first reading.

    Returns:
        `[G]` float32.

    Raises:
        InvalidInputError: for another reading, or shapes that do not fit.

    >>> surplus = torch.tensor([0.2, 0.1, -0.3])
    >>> split_advantages(surplus, torch.tensor([0.4, 0.8, 0.9]))
    tensor([-0.7069,  0.7069, -0.9000])
    """
    if reading not in get_args(Reading):
        raise InvalidInputError(
            f"reading is {reading!r}; expected one of {', '.join(get_args(Reading))}"
        )
    if surplus.dim() != 1 or surplus.shape != sparsity.shape:
        raise InvalidInputError(
            f"surplus {tuple(surplus.shape)} and sparsity {tuple(sparsity.shape)} do not fit; "
            f"expected [G] and [G]"
        )
    surplus, sparsity = surplus.detach().float(), sparsity.detach().float()
    safe = surplus > 0
    value = sparsity if reading == "sparsity" else sparsity * surplus
    penalty = -penalty_weight * sparsity if reading == "sparsity" else value
    count = int(safe.sum())
    own = value[safe]
    if count < 2 or bool((own == own[0]).all()):
        return torch.where(safe, torch.zeros_like(value), penalty)
    return torch.where(safe, (value - own.mean()) / (own.std() + _EPSILON), penalty)
