"""Exact laws of the samplers, and the test whether draws follow them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import torch
from torch import Tensor


def without_replacement(weights: Sequence[float], k: int) -> dict[tuple[int, ...], float]:
    """The probability of every set of `k` entries drawn one by one without replacement.

    `P(S)` is the sum over the last entry `i` of `P(S - i) * w_i / (sum of w outside S - i)`.

    Args:
        weights: Positive, not necessarily normalised.
        k: Entries drawn.

    >>> law = without_replacement([1.0, 1.0, 2.0], 1)
    >>> law[(2,)]
    0.5
    """
    total = sum(weights)

    @cache
    def probability(members: tuple[int, ...]) -> float:
        if not members:
            return 1.0
        result = 0.0
        for place, last in enumerate(members):
            before = members[:place] + members[place + 1 :]
            left = total - sum(weights[i] for i in before)
            result += probability(before) * weights[last] / left
        return result

    return {members: probability(members) for members in combinations(range(len(weights)), k)}


def chi_square_p_value(observed: Tensor, expected: Tensor, *, pooled_below: float = 5.0) -> float:
    """How likely counts at least this far from `expected` are; the expected counts are exact.

    Args:
        observed: `[C]` counts.
        expected: `[C]` expected counts, of the same sum.
        pooled_below: Cells that expect fewer are counted as one.

    Returns:
        The p-value, near 0 where the counts follow another law.
    """
    observed, expected = observed.double(), expected.double()
    few = expected < pooled_below
    if bool(few.any()):
        observed = torch.cat([observed[~few], observed[few].sum()[None]])
        expected = torch.cat([expected[~few], expected[few].sum()[None]])
        if float(expected[-1]) < pooled_below:  # too few even together: with the smallest other
            smallest = int(expected[:-1].argmin())
            for counts in (observed, expected):
                counts[smallest] += counts[-1]
            observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
