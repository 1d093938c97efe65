"""Token rollouts by online combinatorial space sampling (`K2`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.reference import _checks
from cacovid.reference.ocss import OcssPlan, _sample_video, ocss_plan
from cacovid.reference.ocss import ocss_sample as ocss_sample_reference
from cacovid.types import Grid, PerVideo

_FIELDS = 5  # integers of an OcssPlan


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
    backend: str | None = None,
) -> Tensor:
    """Draw `G` masks of every frame; the first is the greedy choice.

    Each rollout draws one sub-space of every frame, then `k` tokens inside it without replacement
    (CaCoVID, arXiv 2602.01649; the exact statement is in `cacovid.reference.ocss`). Deterministic:
    the same scores, settings, `seed` and `offset` give the same indices on every backend, with any
    number of threads; video `i` of a call equals that video alone at `offset + i`. No gradient
    flows back.

    Args:
        token_scores: `[N]` float, finite; used in float32.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        ratio: Share of each frame's tokens to keep, in (0, 1], one number or one per video.
        rollouts: `G`, at least 1.
        subspace_factor: `lambda`, more than 0; a frame has `1/(lambda*ratio)` sub-spaces.
        max_subspace_prob: Cap on a sub-space's probability; by default `clip(2/l, 0.1, 0.9)`.
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream; advance it with each update of a sample.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[G, K]` int32 on the scores' device, flat token indices, ascending in each row; `K` is the
        sum over frames of `max(1, round(r*n))`.

    Raises:
        InvalidInputError: for NaN or infinite scores, wrong shapes or dtypes, settings out of
            range, or a backend that is not to be had.

    >>> scores = torch.tensor([3.0, 1.0, 2.0, 0.0])
    >>> ocss_sample(scores, [(1, 2, 2)], 0.5, 1, seed=7).tolist()
    [[0, 2]]
    """
    grid = Grid.of(grid)
    token_scores = _arguments.scores(token_scores, grid.num_tokens, "token_scores")
    rollouts = _checks.at_least_one(rollouts, "rollouts")
    if _SPEC.choose(token_scores.device, backend) == "reference":
        return ocss_sample_reference(
            token_scores,
            grid,
            ratio,
            rollouts,
            subspace_factor=subspace_factor,
            max_subspace_prob=max_subspace_prob,
            seed=seed,
            offset=offset,
        )
    plan = flat_plan(ocss_plan(grid, ratio, subspace_factor, max_subspace_prob))
    return _registry.call(
        _OP, token_scores, plan, rollouts, _arguments.as_int64(seed), _arguments.as_int64(offset)
    )


def flat_plan(plans: Sequence[OcssPlan]) -> list[int]:
    """Plans as the schema's `plan`: five integers for each video."""
    integers = []
    for plan in plans:
        integers += [plan.frames, plan.tokens, plan.keep, plan.subspaces, plan.cap]
    return integers


def _reference(
    token_scores: Tensor, plan: Sequence[int], rollouts: int, seed: int, offset: int
) -> Tensor:
    plans = [OcssPlan(*plan[i : i + _FIELDS]) for i in range(0, len(plan), _FIELDS)]
    count = sum(p.frames * p.tokens for p in plans)
    token_scores = _checks.float32_scores(token_scores, count, "token_scores", allow_infinite=False)
    pieces, begin = [], 0
    for index, p in enumerate(plans):
        frames = token_scores[begin : begin + p.frames * p.tokens].view(p.frames, p.tokens)
        local = _sample_video(frames, p, rollouts, seed, offset + index)
        base = begin + torch.arange(p.frames, device=frames.device) * p.tokens
        pieces.append((local + base[None, :, None]).flatten(1))
        begin += p.frames * p.tokens
    return torch.cat(pieces, dim=1).to(torch.int32)


def _fake(
    token_scores: Tensor, plan: Sequence[int], rollouts: int, seed: int, offset: int
) -> Tensor:
    columns = sum(t * k for t, k in zip(plan[::_FIELDS], plan[2::_FIELDS], strict=True))
    return token_scores.new_empty((rollouts, columns), dtype=torch.int32)


_SPEC, _OP = _registry.define(
    "ocss_sample",
    "(Tensor token_scores, int[] plan, int rollouts, int seed, int offset) -> Tensor",
    backends=("cuda", "cpu"),
    reference=_reference,
    fake=_fake,
)
