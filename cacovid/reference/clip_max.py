"""Limiting the largest probabilities, ALGORITHMS 1.3.

This is the law in floating point; the samplers follow it in integers, which every backend
reproduces bit for bit (`fixed_point.clip_max_fixed`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError

#: No entry gets more than this share of what is left at its level.
CAP_LIMIT = 0.999


def clip_max(p: Tensor, cap: float) -> Tensor:
    """Probabilities, none above `cap` as far as that is possible.

    Repeats: raise every entry to at least `1/n**2`, zero the entries that are fixed, normalise. If
    one entry is left or the largest is at most the cap, stop; otherwise fix the largest (the first
    of equals) at the cap and go on with the others, which share `1 - cap` and have the cap
    `cap/(1 - cap)` among themselves. No cap is above 0.999. `n` entries of less than `1/n` each
    are impossible: the last one left then takes the rest (CaCoVID, arXiv 2602.01649).

    Args:
        p: `[..., n]` float, non-negative; each row counts relative to its sum. Computed in its
            own dtype, in at least float32.
        cap: Largest probability, more than 0.

    Returns:
        `[..., n]` in the dtype of the computation, each row 1 in sum. Deterministic; no gradient.

    Raises:
        InvalidInputError: for a cap that is not positive, negative or non-finite entries, or rows
            without an entry or with the sum 0.

    >>> [round(v, 6) for v in clip_max(torch.tensor([0.5, 0.3, 0.2]), 0.4).tolist()]
    [0.4, 0.36, 0.24]
    """
    _check(p, cap)
    shape, p = p.shape, p.detach().reshape(-1, p.shape[-1])
    p = p if p.dtype == torch.float64 else p.float()
    entries = p.shape[1]
    v = p / p.sum(1, keepdim=True)
    fixed = torch.zeros_like(v, dtype=torch.bool)
    out = torch.zeros_like(v)
    # Rows that have not stopped have all fixed one entry a level, so that they share `cap` and
    # `rest`, the probability that is not given away yet.
    rest, cap = 1.0, min(cap, CAP_LIMIT)
    active = torch.ones(len(v), dtype=torch.bool, device=v.device)
    for level in range(entries):
        v = v.clamp(min=1.0 / entries**2).masked_fill(fixed, 0.0)
        v = v / v.sum(1, keepdim=True)
        largest, index = v.max(1, keepdim=True)
        stop = active if level == entries - 1 else active & (largest[:, 0] <= cap)
        out = torch.where(stop[:, None] & ~fixed, rest * v, out)
        active = active & ~stop
        if not bool(active.any()):
            break
        here = torch.zeros_like(fixed).scatter_(1, index, True) & active[:, None]
        out = out.masked_fill(here, rest * cap)
        fixed = fixed | here
        rest *= 1.0 - cap
        cap = min(cap / (1.0 - cap), CAP_LIMIT)
    return out.view(shape)


def _check(p: Tensor, cap: float) -> None:
    if not cap > 0.0:
        raise InvalidInputError(f"cap is {cap}; expected a positive number")
    if p.dim() == 0 or p.shape[-1] == 0 or not p.is_floating_point():
        raise InvalidInputError(
            f"p is {tuple(p.shape)} {p.dtype}; expected [..., n] floating point, n at least 1"
        )
    if not bool((torch.isfinite(p) & (p >= 0)).all()) or not bool((p.sum(-1) > 0).all()):
        raise InvalidInputError(
            "p has rows that are no probabilities; expected finite, non-negative entries with a "
            "positive sum"
        )
