"""The same algorithms in plain PyTorch over all frames and rollouts at once, without any wait.

What a careful user would write; the ops are measured against these, eager and by torch.compile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cacovid.reference.ocss import OcssPlan
from cacovid.reference.select_tokens import SelectPlan


def ocss_sample(scores: Tensor, plan: OcssPlan, rollouts: int, cap: float) -> Tensor:
    """Token rollouts of the same law as `ops.ocss_sample`, from PyTorch's own random numbers.

    Args:
        scores: `[t, n]` float32.
        plan: Of the video.
        rollouts: `G`; the first is greedy.
        cap: Largest probability of a sub-space.

    Returns:
        `[G, t*k]` int32, ascending in each row.
    """
    (t, n), count, device = scores.shape, plan.subspaces, scores.device
    sizes = [n // count + (i < n % count) for i in range(count)]
    member_of = torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(sizes)])
    p, order = torch.softmax(scores, 1).sort(dim=1, descending=True, stable=True)
    owner = member_of.expand(t, n)
    masses = torch.zeros(t, count, device=device).scatter_add(1, owner, p)
    chances = _clip_max(masses, cap)
    each = n // count
    weights = (p / (masses + 1e-8).gather(1, owner)).clamp(0.5 / each, 2.0 / each)

    draws = chances.expand(rollouts, t, count)
    drawn = (draws / torch.empty_like(draws).exponential_()).argmax(2, keepdim=True)
    race = torch.empty(rollouts, t, n, device=device).exponential_() / weights
    ranks = torch.arange(n, device=device, dtype=race.dtype)
    inside, after = member_of == drawn, member_of > drawn
    # Members by their race, then the ranks that follow, then those before, backwards.
    race = race / (1.0 + race)  # below 1, in the same order
    keys = torch.where(inside, race, torch.where(after, 2.0 + ranks, 2.0 + 2.0 * n - ranks))
    keys[0] = ranks
    chosen = keys.topk(plan.keep, dim=2, largest=False).indices
    tokens = order.expand(rollouts, t, n).gather(2, chosen).sort(2).values
    return (tokens + torch.arange(t, device=device)[:, None] * n).flatten(1).to(torch.int32)


def frame_sample(scores: Tensor, choose: int, rollouts: int) -> Tensor:
    """Frame rollouts of the same law as `ops.frame_sample`, from PyTorch's own random numbers.

    Args:
        scores: `[t]` float32.
        choose: Frames that a rollout draws.
        rollouts: `G`; the first is greedy.

    Returns:
        `[G, t]` bool.
    """
    weights = _clip_max(torch.softmax(scores, 0)[None], 3.0 / len(scores)).expand(rollouts, -1)
    race = torch.empty_like(weights).exponential_() / weights
    race[0] = -scores
    drawn = race.topk(choose, dim=1, largest=False).indices
    return torch.zeros_like(race, dtype=torch.bool).scatter_(1, drawn, True)


def _clip_max(p: Tensor, cap: float) -> Tensor:
    count = p.shape[1]
    fixed = torch.zeros_like(p, dtype=torch.bool)
    stopped = torch.zeros_like(p[:, :1], dtype=torch.bool)
    out, rest, v = torch.zeros_like(p), 1.0, p / p.sum(1, keepdim=True)
    levels = min(count, math.ceil(1.0 / cap) + 1)  # each fixes `cap` of what all share
    for level in range(levels):
        v = v.clamp(min=1.0 / count**2).masked_fill(fixed, 0.0)
        v = v / v.sum(1, keepdim=True)
        largest, index = v.max(1, keepdim=True)
        stop = ~stopped & ((largest <= cap) | (level == levels - 1))
        out = torch.where(stop & ~fixed, rest * v, out)
        stopped = stopped | stop
        here = torch.zeros_like(fixed).scatter(1, index, True) & ~stopped
        out = out.masked_fill(here, rest * cap)
        fixed = fixed | here
        rest *= 1.0 - cap
        cap = min(cap / (1.0 - cap), 0.999)
    return out


def select_tokens(tokens: Tensor, frames: Tensor, plan: SelectPlan) -> Tensor:
    """The tokens of `ops.select_tokens` up to the rounding of float64.

    Args:
        tokens: `[t, n]` float32.
        frames: `[t]` float32.
        plan: Of the video, with a budget of at least one token for each frame.

    Returns:
        `[K]` int64, ascending.
    """
    (t, n), device = tokens.shape, tokens.device
    f = frames.double()
    largest = f.abs().max()
    f = torch.where(largest > 0, 3.0 * f / largest, f)
    s = torch.softmax(f, 0).clamp(0.5 / t, plan.clip / t)
    quotas = (s / s.sum() * plan.scale).round().long().clamp(1, plan.cap)
    quotas = _level(quotas, plan.budget, n)
    order = tokens.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(n, device=device)
    mask = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, order, ranks < quotas[:, None])
    mask = mask.flatten()
    rest, others = plan.total - plan.budget, t * n - plan.budget
    if rest:
        # round half to even of j*(others - 1)/(rest - 1), exact in integers
        steps, base = torch.arange(rest, device=device) * (others - 1), max(rest - 1, 1)
        places = steps // base
        twice = 2 * (steps - places * base)
        places = places + ((twice > base) | ((twice == base) & (places % 2 == 1))).long()
        spread = torch.zeros(others, dtype=torch.bool, device=device).index_fill(0, places, True)
        number = (~mask).cumsum(0) - 1
        mask = mask | (spread[number.clamp(min=0)] & ~mask)
    place = torch.where(mask, mask.cumsum(0) - 1, plan.total)
    out = torch.empty(plan.total + 1, dtype=torch.int64, device=device)
    return out.scatter(0, place, torch.arange(t * n, device=device))[: plan.total]


def _level(quotas: Tensor, budget: int, tokens: int) -> Tensor:
    levels = torch.arange(tokens + 1, device=quotas.device)
    lowered = torch.minimum(quotas[:, None], levels).sum(0)
    raised = torch.maximum(quotas[:, None], levels).sum(0)
    down = quotas.sum() > budget
    line = torch.where(down, (lowered < budget).sum(), ((raised <= budget).sum() - 1).clamp(min=0))
    levelled = torch.where(down, quotas.clamp(max=line), torch.maximum(quotas, line))
    off = budget - levelled.sum()
    at_line = levelled == line
    return levelled + (at_line & (at_line.cumsum(0) <= off.abs())).long() * off.sign()
