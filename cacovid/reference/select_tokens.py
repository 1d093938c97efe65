"""The exact budget and its tokens, ALGORITHMS 1.2.

**Recipe** (normative: the same float32 scores give the same tokens on every backend; numbers in
brackets refer to `fixed_point`; int64 throughout, `//` on non-negative integers, `round` half to
even, floors of float64 products with 1e-9 added first).

*Plan*, per video, on the host in float64 (`select_plan`), for `t` frames of `n` tokens, `N = t*n`,
retention `r`, policy share `alpha`, maximum frame ratio `c` (default `1.5*r`):
`total = max(1, floor(r*N))`; `budget = floor(alpha*r*N)` (for `alpha = 1`: `total`);
`scale = round(alpha*r*N)`; `cap = min(n, max(1, floor(alpha*n*c)))`; `clip = c/r` (a float64).

*Quotas*, from the frame scores `f` as float64 (all zero where a method has none); only item 1
uses floating point, IEEE binary64 without fused multiply-add:

1. `M = max |f|`; `g_i = (3*f_i)/M`, or `f_i` when `M = 0`; `d_i = g_i - max g`, in [-6, 0];
   `E_i = trunc(p * 2**(k + 32) + 0.5)` with `(p, k) = exp64(d_i)`:

       k = trunc(d * 1.4426950408889634 - 0.5);  f = double(k)
       x = (d - f * 0.693145751953125) - f * 1.42860682030941723212e-6
       p = 1/13!; then for j = 12, 11, ..., 0:  p = p * x + 1/j!     (each 1/j! rounded to binary64)

2. `T = sum E_i`; `lo = T // (2*t)`; `hi = max(1, trunc(min((double(T) * clip) / double(t),
   double(T))))`; `C_i = min(max(E_i, lo), hi)`; `D = sum C_i`. (The clipped softmax is `C_i / D`.)
3. `q_i = min(max(round(C_i * scale / D), 1), cap)`, the quotient rounded as a rational number.
4. Levelling to `sum q = budget`, as a water line. If `sum q > budget`: `L` is the smallest level
   with `sum min(q, L) >= budget`; `q = min(q, L)`, and the first `sum q - budget` frames with
   `q_i = L` lose one. Else `L` is the largest level with `sum max(q, L) <= budget`;
   `q = max(q, L)`, and the first `budget - sum q` frames with `q_i = L` gain one. Frames in
   ascending order. (Equal to taking one from the largest, or giving one to the smallest, again and
   again, ties to the lowest frame; no quota passes `n` because `budget <= t*n`.)
5. If `budget < t`, items 1 to 4 are void: `q_i = 1` for the `budget` frames of highest score
   [1, ties to the lowest frame], else 0.

*Tokens*: the `q_i` tokens of highest score in each frame [1]. Of the `m = N - budget` others in
ascending order, those at the positions `round(j*(m-1)/(U-1))`, `j = 0 ... U-1`, with
`U = total - budget`, the quotient rounded as a rational number; `U = 1` takes position 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference import _checks, fixed_point
from cacovid.types import Grid, PerVideo, floor_budget

_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860682030941723212e-6
_EXP_BITS = 32


@dataclass(frozen=True)
class SelectPlan:
    """What the selection needs to know of one video, made on the host, once.

    Args:
        frames: `t`.
        tokens: `n`, tokens of a frame.
        total: Kept tokens.
        budget: Kept tokens that the scores choose; the rest is the uniform share.
        scale: What the frame shares are multiplied by.
        cap: Largest quota before levelling.
        clip: Largest frame share, in units of `1/t`.
    """

    frames: int
    tokens: int
    total: int
    budget: int
    scale: int
    cap: int
    clip: float


def select_plan(
    grid: Grid,
    retention: PerVideo,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
) -> tuple[SelectPlan, ...]:
    """One plan per video; every backend works from these numbers.

    Raises:
        InvalidInputError: for a retention outside (0, 1], a policy share outside [0, 1], or a
            frame ratio that is not positive.

    >>> plan = select_plan(Grid([(32, 14, 14)]), 0.1)[0]
    >>> plan.total, plan.budget, plan.cap
    (627, 313, 14)
    """
    if not 0.0 <= policy_share <= 1.0:
        raise InvalidInputError(f"policy_share is {policy_share}; expected a number in [0, 1]")
    totals = grid.budgets(retention)
    ratios = grid.per_video(retention, "retention")
    if max_frame_ratio is None:
        frame_ratios = tuple(1.5 * r for r in ratios)
    else:
        frame_ratios = grid.per_video(max_frame_ratio, "max_frame_ratio")
    plans = []
    for (t, h, w), r, c, total in zip(grid.sizes, ratios, frame_ratios, totals, strict=True):
        if not 0.0 < c < math.inf:
            raise InvalidInputError(f"max_frame_ratio is {c}; expected a positive number")
        n = h * w
        share = policy_share * r
        # With a policy share of 1 nothing may be left to the uniform share, also where the total
        # was raised to its minimum of 1.
        budget = total if policy_share == 1.0 else floor_budget(share, t * n)
        cap = min(n, max(1, floor_budget(policy_share * c, n)))
        plans.append(SelectPlan(t, n, total, budget, round(share * (t * n)), cap, c / r))
    return tuple(plans)


def select_tokens(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
) -> Tensor:
    """The kept tokens of every video: quotas per frame, the best tokens, a uniform share.

    Deterministic: the same scores give the same tokens on every backend, ties to the lowest
    index. A video's choice does not depend on the videos packed with it.

    Args:
        token_scores: `[N]` float, no NaN; used in float32.
        frame_scores: `[F]` float, finite; used in float32. None counts all frames as equal.
        grid: The packed videos.
        retention: `r`, one number or one per video.
        policy_share: `alpha`, the share of the budget that the scores choose.
        max_frame_ratio: `c`, bounds a frame's share; `1.5*r` by default.

    Returns:
        `[K]` int64, ascending, flat over the packed videos; exactly `max(1, floor(r*N))` of each.

    Raises:
        InvalidInputError: for NaN scores, infinite frame scores, wrong shapes, and settings that
            `select_plan` refuses.

    >>> scores = torch.tensor([0.0, 3.0, 1.0, 2.0])
    >>> select_tokens(scores, None, [(1, 2, 2)], 0.5, policy_share=1.0).tolist()
    [1, 3]
    """
    grid = Grid.of(grid)
    token_scores = _checks.float32_scores(
        token_scores, grid.num_tokens, "token_scores", allow_infinite=True
    )
    if frame_scores is None:
        frame_scores = token_scores.new_zeros(grid.num_frames)
    frame_scores = _checks.float32_scores(
        frame_scores, grid.num_frames, "frame_scores", allow_infinite=False
    )
    keep = []
    for index, plan in enumerate(select_plan(grid, retention, policy_share, max_frame_ratio)):
        begin, end = grid.host_video_offsets[index : index + 2]
        first, last = grid.host_video_frame_offsets[index : index + 2]
        tokens = token_scores[begin:end].view(plan.frames, plan.tokens)
        keep.append(begin + _select_video(tokens, frame_scores[first:last], plan))
    return torch.cat(keep)


def frame_quotas(frame_scores: Tensor, plan: SelectPlan) -> Tensor:
    """Tokens that the scores may choose in each frame (recipe, *Quotas*).

    Args:
        frame_scores: `[t]` float32, finite.
        plan: The video's plan.

    Returns:
        `[t]` int64, between 0 and `n`, `plan.budget` in sum.
    """
    t = plan.frames
    if plan.budget < t:
        best = fixed_point.rank(frame_scores)[: plan.budget]
        return torch.zeros_like(frame_scores, dtype=torch.int64).index_fill_(0, best, 1)
    exps = _fixed_softmax(frame_scores)
    total = int(exps.sum())
    high = max(1, int(min((float(total) * plan.clip) / float(t), float(total))))
    shares = exps.clamp(min=total // (2 * t)).clamp(max=high)
    wanted = _round_half_even(shares * plan.scale, int(shares.sum()))
    return _level(wanted.clamp(min=1).clamp(max=plan.cap), plan.budget, plan.tokens)


def _fixed_softmax(frame_scores: Tensor) -> Tensor:
    """Numerators of the softmax of `3*f/max|f|` in 32-bit fixed point, int64 `[t]`."""
    f = frame_scores.to(torch.float64)
    largest = f.abs().max()
    f = torch.where(largest > 0, (3.0 * f) / largest, f)
    d = f - f.max()
    k = (d * _LOG2E - 0.5).to(torch.int64)
    whole = k.to(torch.float64)
    x = (d - whole * _LN2_HIGH) - whole * _LN2_LOW
    p = torch.full_like(x, 1.0 / math.factorial(13))
    for j in range(12, -1, -1):
        p = p * x
        p = p + 1.0 / math.factorial(j)
    scale = torch.ldexp(torch.ones_like(p), k + _EXP_BITS)
    return (p * scale + 0.5).to(torch.int64)


def _round_half_even(numerators: Tensor, denominator: int) -> Tensor:
    """`numerators / denominator` rounded half to even, exactly (int64, non-negative)."""
    quotient = numerators // denominator
    twice = 2 * (numerators - quotient * denominator)
    up = (twice > denominator) | ((twice == denominator) & (quotient % 2 == 1))
    return quotient + up.to(torch.int64)


def _level(quotas: Tensor, budget: int, tokens: int) -> Tensor:
    """Quotas brought to the sum `budget` by a water line (recipe, item 4)."""
    if int(quotas.sum()) > budget:
        low, high = 0, tokens  # sum(min(q, high)) >= budget > sum(min(q, low))
        while high - low > 1:
            middle = (low + high) // 2
            if int(quotas.clamp(max=middle).sum()) >= budget:
                high = middle
            else:
                low = middle
        quotas, step = quotas.clamp(max=high), -1
        line = high
    else:
        low, high = 0, tokens + 1  # sum(max(q, low)) <= budget, and the line is below `high`
        while high - low > 1:
            middle = (low + high) // 2
            if int(quotas.clamp(min=middle).sum()) <= budget:
                low = middle
            else:
                high = middle
        quotas, step = quotas.clamp(min=low), 1
        line = low
    rest = abs(int(quotas.sum()) - budget)
    at_line = torch.nonzero(quotas == line).flatten()[:rest]
    return quotas.index_add(0, at_line, torch.full_like(at_line, step))


def _select_video(tokens: Tensor, frame_scores: Tensor, plan: SelectPlan) -> Tensor:
    """Kept tokens of one video (`tokens`: `[t, n]` float32), ascending, int64 `[total]`."""
    quotas = frame_quotas(frame_scores, plan)
    order = fixed_point.rank(tokens)
    ranks = torch.arange(plan.tokens, device=tokens.device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask = mask.scatter_(1, order, ranks < quotas[:, None]).flatten()
    rest = plan.total - plan.budget
    if rest:
        others = torch.nonzero(~mask).flatten()
        steps = torch.arange(rest, device=tokens.device) * (others.numel() - 1)
        mask[others[_round_half_even(steps, max(rest - 1, 1))]] = True
    return torch.nonzero(mask).flatten()
