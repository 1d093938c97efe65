"""Token rollouts by online combinatorial space sampling (OCSS), ALGORITHMS 1.3.

**Recipe** (normative: a backend must give the same indices for the same float32 scores; numbers in
brackets refer to `fixed_point`, draws to `philox`).

*Plan*, per video, on the host in float64 (`ocss_plan`): `n` tokens of a frame,
`k = max(1, round(r*n))`, `l = min(n, max(floor(1/(lambda*r) + 1e-9), 1))`, `e = n // l`,
`cap = fixed_cap(max_subspace_prob)`, by default of `clip(2/l, 0.1, 0.9)` (1 when `l = 1`).
`round` is half to even. Sub-space `j` holds the ranks `[a_j, a_{j+1})`; the first `n mod l`
sub-spaces have `e + 1` members, the others `e`: `a_j = j*e + min(j, n mod l)`.

*Per frame* (shared by all rollouts); `z_i` is the score at rank `i` [1]:

1. `m_i = mass(z_i - z_0)` [3], the difference rounded to float32; `S = sum m_i`;
   `M_j = sum of m_i over sub-space j`.
2. `c_j = clip_max(M_j, cap, max(1, ONE // l**2))` [5]; `C_j = c_0 + ... + c_j`.
3. Inside sub-space `j`, relative to its own largest score `s = z_{a_j}`:
   `w_i = mass(z_i - s)`; `W_j = sum w_i`. The 1e-8 in the published denominator, in the same unit:
   `x = (1e-8 (0x322BCC77) * float(S)) / exp_value(s - z_0)` [2] in float32, multiplied first, then
   divided; `T_j = W_j + trunc(min(x, 2**40))`.
   The weight, `w/T` clamped to `[0.5/e, 2/e]`, times `2*e*T`, is an integer without a division:
   `q_i = min(max(2*e*w_i, T_j), 4*T_j)`; as a float32 (rounded to nearest even) `float(q_i)`.

*Rollout 0* keeps the ranks `0 .. k-1` of each frame; no number is drawn.

*Rollout g >= 1*, each frame on its own, `op = OP_OCSS`:

1. Draw 0, a word `x`: `target = (x * C_{l-1}) >> 32`; the sub-space is the lowest `j` with
   `target < C_j`.
2. If it has at least `k` members: member `i` of the sub-space (rank `a_j + i`) has draw `1 + i`
   and the time `neg_log(x) / float(q)` [4], one IEEE float32 division. Keep the `k` members with
   the smallest times, ties to the lowest `i`.
3. If it has fewer: no further draw counts; keep the ranks `[b, b + k)` with `b = min(a_j, n - k)`,
   that is all members, then the following ranks, then the preceding ones from the nearest on.

*Output*: for each rollout the kept tokens' flat indices, ascending, int32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference import _checks, fixed_point, philox
from cacovid.types import FLOOR_EPSILON, Grid, PerVideo


@dataclass(frozen=True)
class OcssPlan:
    """What the sampler needs to know of one video: integers made on the host, once.

    Args:
        frames: `t`.
        tokens: `n`, tokens of a frame.
        keep: `k`, tokens kept in each frame.
        subspaces: `l`.
        cap: Largest sub-space probability, fixed point with `fixed_point.ONE`.
    """

    frames: int
    tokens: int
    keep: int
    subspaces: int
    cap: int

    @property
    def starts(self) -> tuple[int, ...]:
        """First rank of each sub-space, and `n` at the end: `l + 1` integers."""
        return subspace_starts(self.tokens, self.subspaces)


def kept_per_frame(tokens: int, ratio: float) -> int:
    """`k = max(1, round(r*n))`, half to even."""
    return max(1, round(ratio * tokens))


def subspace_count(tokens: int, ratio: float, subspace_factor: float) -> int:
    """`l = min(n, max(floor(1/(lambda*r)), 1))`."""
    # Bounded by `tokens` before the floor, so that a vanishing ratio cannot overflow it.
    return max(math.floor(min(1.0 / (subspace_factor * ratio), tokens) + FLOOR_EPSILON), 1)


def subspace_starts(tokens: int, subspaces: int) -> tuple[int, ...]:
    """First rank of each sub-space, and `n` at the end; the first `n mod l` are one longer."""
    size, longer = divmod(tokens, subspaces)
    return tuple(j * size + min(j, longer) for j in range(subspaces + 1))


def subspace_cap(subspaces: int, max_subspace_prob: float | None) -> float:
    """The cap on a sub-space's probability: as given, or `clip(2/l, 0.1, 0.9)` (1 for `l = 1`).

    Raises:
        InvalidInputError: if a given cap is not in (0, 1].
    """
    if max_subspace_prob is None:
        return 1.0 if subspaces == 1 else min(max(2.0 / subspaces, 0.1), 0.9)
    if not 0.0 < max_subspace_prob <= 1.0:
        raise InvalidInputError(
            f"max_subspace_prob is {max_subspace_prob}; expected a number in (0, 1], or None"
        )
    return max_subspace_prob


def ocss_plan(
    grid: Grid,
    ratio: PerVideo,
    subspace_factor: float = 2.0,
    max_subspace_prob: float | None = None,
) -> tuple[OcssPlan, ...]:
    """One plan per video; every backend works from these integers.

    Raises:
        InvalidInputError: for a ratio outside (0, 1], a factor that is not positive, a cap outside
            (0, 1], or a frame with more than 32,767 tokens.

    >>> ocss_plan(Grid([(32, 14, 14)]), 0.02)[0].subspaces
    25
    """
    if not subspace_factor > 0.0:
        raise InvalidInputError(f"subspace_factor is {subspace_factor}; expected more than 0")
    plans = []
    for (t, h, w), r in zip(grid.sizes, _checks.ratios(grid, ratio, "ratio"), strict=True):
        n = h * w
        if n > fixed_point.MAX_ENTRIES:
            raise InvalidInputError(
                f"a frame has {n} tokens; the sampler's integers hold "
                f"{fixed_point.MAX_ENTRIES} at most"
            )
        count = subspace_count(n, r, subspace_factor)
        cap = fixed_point.fixed_cap(subspace_cap(count, max_subspace_prob))
        plans.append(OcssPlan(t, n, kept_per_frame(n, r), count, cap))
    return tuple(plans)


def ocss_sample(
    token_scores: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    ratio: PerVideo,
    rollouts: int,
    *,
    subspace_factor: float = 2.0,
    max_subspace_prob: float | None = None,
    seed: int,
    offset: int = 0,
) -> Tensor:
    """Draw `G` masks of every frame; the first is the greedy choice (ALGORITHMS 1.3).

    Deterministic: the same scores, plan, `seed` and `offset` give the same indices on every
    backend; video `i` of a call equals that video alone at `offset + i`.

    Args:
        token_scores: `[N]` float, finite; used in float32.
        grid: The packed videos.
        ratio: Share of each frame's tokens to keep, one number or one per video.
        rollouts: `G`, at least 1.
        subspace_factor: `lambda`.
        max_subspace_prob: Cap on a sub-space's probability; by default `clip(2/l, 0.1, 0.9)`.
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream; advance it with each update of a sample.

    Returns:
        `[G, K]` int32, ascending in each row, `K` the sum over frames of `max(1, round(r*n))`.

    Raises:
        InvalidInputError: for NaN or infinite scores, and for settings that `ocss_plan` refuses.

    >>> scores = torch.tensor([3.0, 1.0, 2.0, 0.0])
    >>> ocss_sample(scores, [(1, 2, 2)], 0.5, 1, seed=7).tolist()
    [[0, 2]]
    """
    grid = Grid.of(grid)
    scores = _checks.float32_scores(
        token_scores, grid.num_tokens, "token_scores", allow_infinite=False
    )
    plans = ocss_plan(grid, ratio, subspace_factor, max_subspace_prob)
    _checks.at_least_one(rollouts, "rollouts")
    pieces = []
    for index, plan in enumerate(plans):
        begin, end = grid.host_video_offsets[index : index + 2]
        frames = scores[begin:end].view(plan.frames, plan.tokens)
        local = _sample_video(frames, plan, rollouts, seed, offset + index)
        base = begin + torch.arange(plan.frames, device=scores.device) * plan.tokens
        pieces.append((local + base[None, :, None]).flatten(1))
    return torch.cat(pieces, dim=1).to(torch.int32)


@dataclass(frozen=True)
class FrameTables:
    """What all rollouts of a video share, each over `t` frames.

    Args:
        order: `[t, n]` int64: token at each rank.
        subspace_weights: `[t, l]` int64: `c_j`.
        token_weights: `[t, n]` int64: `q` of the token at each rank.
    """

    order: Tensor
    subspace_weights: Tensor
    token_weights: Tensor


def frame_tables(frames: Tensor, plan: OcssPlan) -> FrameTables:
    """Rank, sub-space weights and token weights of each frame (`frames`: `[t, n]` float32)."""
    device = frames.device
    order = fixed_point.rank(frames)
    z = frames.gather(1, order)
    starts = torch.tensor(plan.starts, device=device)
    sizes = starts[1:] - starts[:-1]
    member_of = torch.repeat_interleave(torch.arange(plan.subspaces, device=device), sizes)

    masses = fixed_point.mass(z - z[:, :1])
    subspace_weights = fixed_point.clip_max_fixed(
        _sums(masses, starts), plan.cap, fixed_point.fixed_floor(plan.subspaces)
    )

    best = z[:, starts[:-1]]
    within = fixed_point.mass(z - best[:, member_of])
    total = masses.sum(1, keepdim=True).to(torch.float32)
    tiny = torch.tensor(1e-8, dtype=torch.float32, device=device)
    vanishing = (tiny * total) / fixed_point.exp_value(best - z[:, :1])
    limit = torch.tensor(2.0**40, dtype=torch.float32, device=device)
    denominators = _sums(within, starts) + torch.minimum(vanishing, limit).to(torch.int64)
    denominators = denominators[:, member_of]
    scaled = within * (2 * (plan.tokens // plan.subspaces))
    weights = torch.minimum(torch.maximum(scaled, denominators), 4 * denominators)
    return FrameTables(order, subspace_weights, weights)


def _sums(values: Tensor, starts: Tensor) -> Tensor:
    """`[t, l]`: sums of `values [t, n]` over the sub-spaces."""
    prefix = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    return prefix[:, starts[1:]] - prefix[:, starts[:-1]]


def _sample_video(frames: Tensor, plan: OcssPlan, rollouts: int, seed: int, item: int) -> Tensor:
    """`[G, t, k]` int64: kept tokens of each frame, ascending."""
    device, k = frames.device, plan.keep
    tables = frame_tables(frames, plan)
    starts = torch.tensor(plan.starts, device=device)
    longest = int(plan.tokens // plan.subspaces + (plan.tokens % plan.subspaces > 0))
    first = torch.arange(k, device=device).expand(1, plan.frames, k)
    if rollouts == 1:
        ranks = first
    else:
        words = philox.draw_words(
            philox.OP_OCSS,
            torch.arange(plan.frames, device=device),
            torch.arange(1, rollouts, device=device),
            item,
            1 + longest,
            seed,
        )
        prefix = tables.subspace_weights.cumsum(1)
        target = (words[..., 0] * prefix[:, -1]) >> 32
        chosen = (prefix[None] <= target[..., None]).sum(-1)
        begin, size = starts[chosen], starts[chosen + 1] - starts[chosen]

        member = torch.arange(longest, device=device)
        inside = member < size[..., None]
        rank = (begin[..., None] + member).clamp(max=plan.tokens - 1)
        weights = tables.token_weights.expand(rollouts - 1, -1, -1).gather(2, rank)
        times = fixed_point.neg_log(words[..., 1:]) / weights.to(torch.float32)
        times = times.masked_fill(~inside, torch.inf)
        raced = torch.sort(times, dim=-1, stable=True).indices[..., :k]
        raced = torch.nn.functional.pad(raced, (0, k - raced.shape[-1])) + begin[..., None]
        window = begin.clamp(max=plan.tokens - k)[..., None] + first[0, 0]
        drawn = torch.where((size >= k)[..., None], raced, window)
        ranks = torch.cat([first, drawn])
    order = tables.order.expand(rollouts, -1, -1)
    return order.gather(2, ranks).sort(dim=-1).values
