"""The procedures as they were published, done step by step and frame by frame.

Written from the description of the algorithms (CaCoVID, arXiv 2602.01649; DivPrune for
`farthest_point`), to measure what the ops replace: every decision that hangs on a value is made on
the host, so that on a GPU each of them waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.reference.ocss import OcssPlan
from cacovid.reference.select_tokens import SelectPlan


def ocss_sample(scores: Tensor, plan: OcssPlan, rollouts: int, cap: float) -> Tensor:
    """Token rollouts, ALGORITHMS 1.3.

    Args:
        scores: `[t, n]` float.
        plan: Of the video.
        rollouts: `G`; the first is greedy.
        cap: Largest probability of a sub-space.

    Returns:
        Masks `[G, t*n]` bool.
    """
    masks = torch.zeros(rollouts, *scores.shape, dtype=torch.bool, device=scores.device)
    for frame, row in enumerate(scores):
        p, order = torch.softmax(row, 0).sort(descending=True, stable=True)
        members = torch.tensor_split(order, plan.subspaces)
        shares = torch.tensor_split(p, plan.subspaces)
        chances = _clip_max(torch.stack([share.sum() for share in shares]), cap)
        each = plan.tokens // plan.subspaces
        masks[0, frame, order[: plan.keep]] = True
        for rollout in range(1, rollouts):
            drawn = int(torch.multinomial(chances, 1))
            weights = (shares[drawn] / (shares[drawn].sum() + 1e-8)).clamp(0.5 / each, 2.0 / each)
            if len(weights) > plan.keep:
                chosen = members[drawn][torch.multinomial(weights, plan.keep)]
            else:  # all of them, then the ranks that follow, then those before
                ends = sum(map(len, members[: drawn + 1]))
                begins = ends - len(weights)
                chosen = torch.cat((order[begins:], order[:begins].flip(0)))[: plan.keep]
            masks[rollout, frame, chosen] = True
    return masks.flatten(1)


def _clip_max(p: Tensor, cap: float) -> Tensor:
    out, left = torch.zeros_like(p), torch.ones_like(p, dtype=torch.bool)
    rest = 1.0
    v = p / p.sum()
    while True:
        v = v.clamp(min=1.0 / len(p) ** 2) * left
        v = v / v.sum()
        largest = int(v.argmax())
        if float(v[largest]) <= cap or int(left.sum()) == 1:
            return out + rest * v
        out[largest] = rest * cap
        left[largest] = False
        rest *= 1.0 - cap
        cap = min(cap / (1.0 - cap), 0.999)


def select_tokens(tokens: Tensor, frames: Tensor, plan: SelectPlan) -> Tensor:
    """The budget and its tokens, ALGORITHMS 1.2, levelled one token at a time.

    Args:
        tokens: `[t, n]` float.
        frames: `[t]` float.
        plan: Of the video, with a budget of at least one token for each frame.

    Returns:
        `[K]` int64, ascending.
    """
    t, n = tokens.shape
    f = frames.double()
    if float(f.abs().max()) > 0:
        f = 3.0 * f / f.abs().max()
    s = torch.softmax(f, 0).clamp(0.5 / t, plan.clip / t)
    quotas = (s / s.sum() * plan.scale).round().long().clamp(1, plan.cap)
    while int(quotas.sum()) > plan.budget:
        quotas[int(quotas.argmax())] -= 1
    while int(quotas.sum()) < plan.budget:
        quotas[int(quotas.argmin())] += 1
    mask = torch.zeros(t, n, dtype=torch.bool, device=tokens.device)
    for frame in range(t):
        mask[frame, tokens[frame].topk(int(quotas[frame])).indices] = True
    mask = mask.flatten()
    others = torch.nonzero(~mask).flatten()
    rest = plan.total - plan.budget
    if rest:
        places = torch.linspace(0, len(others) - 1, rest, dtype=torch.float64).round().long()
        mask[others[places.to(others.device)]] = True
    return torch.nonzero(mask).flatten()


def farthest_point(rows: Tensor, k: int) -> Tensor:
    """The max-min selection with all distances, each step over all that is taken: O(k^2 N).

    Args:
        rows: `[M, D]` float.
        k: Rows to keep.

    Returns:
        `[k]` int64, ascending.
    """
    rows = rows.float()
    squares = rows.square().sum(1)
    distances = squares[:, None] + squares - 2.0 * (rows @ rows.T)
    taken = [int((rows - rows.mean(0)).square().sum(1).argmax())]
    while len(taken) < k:
        nearest = distances[torch.tensor(taken, device=rows.device)].amin(0)
        nearest[torch.tensor(taken, device=rows.device)] = -1.0
        taken.append(int(nearest.argmax()))
    return torch.tensor(sorted(taken), device=rows.device)
