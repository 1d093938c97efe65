"""Exact choices by rank: ties to the lowest index, counts known beforehand, nothing read back."""

from __future__ import annotations

import torch
from torch import Tensor


def best(scores: Tensor, count: int, tier: Tensor | None = None) -> Tensor:
    """The `count` highest, tier by tier.

    Args:
        scores: `[M]` float; infinite ones are allowed.
        count: How many, at most `M`.
        tier: `[M]` integer or bool: all of tier 0 go before all of tier 1, and so on.

    Returns:
        `[count]` int64, ascending.

    >>> best(torch.tensor([1.0, 5.0, 3.0]), 2, torch.tensor([0, 1, 1])).tolist()
    [0, 1]
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    if tier is not None:
        order = order[torch.sort(tier[order].to(torch.uint8), stable=True).indices]
    return torch.sort(order[:count]).values


def ranks(scores: Tensor, inside: Tensor | None = None) -> Tensor:
    """How many of its row go before each: 0 for the highest.

    Args:
        scores: `[B, M]` float; infinite ones are allowed.
        inside: `[B, M]` bool: these go before all others of their row, whatever their scores.

    Returns:
        `[B, M]` int64, a permutation in each row.

    >>> ranks(torch.tensor([[5.0, -torch.inf, 7.0]]), torch.tensor([[True, True, False]])).tolist()
    [[0, 1, 2]]
    """
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    if inside is not None:
        outside = (~inside).gather(1, order).to(torch.uint8)
        order = order.gather(1, torch.sort(outside, dim=1, stable=True).indices)
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


def members(mask: Tensor, count: int) -> Tensor:
    """The places of a mask whose number of True is known: `nonzero` without a wait.

    Args:
        mask: `[M]` bool.
        count: How many are True.

    Returns:
        `[count]` int64, ascending.
    """
    return torch.sort(mask.to(torch.uint8), descending=True, stable=True).indices[:count]
