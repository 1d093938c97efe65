"""Rollouts that keep every token by a coin of its own, ALGORITHMS 2.2 (SCORE, arXiv 2603.26365).

**Recipe** (normative: a backend must give the same mask for the same float32 logits; numbers in
brackets refer to `fixed_point`, draws to `philox`).

*Per token*, shared by all rollouts, `z` its logit: with `e = exp_value(-|z|)` [2] (the power of two
times the polynomial, both exact in float32), `q = e / (1 + e)` is the probability of the less
likely bit, one float32 sum and one IEEE division. `m = max(1, trunc(q * 2**32))`, the product
being exact. The threshold is `m` for `z < 0` and `2**32 - m` for `z >= 0` (so for both zeros).

*Rollout g*, token `i` of its video: draw `i`, a word `x`, of the stream (`op = OP_BERNOULLI`, frame
0, rollout `g`). The token is kept where `x < threshold`. The frames of a video have no say, so that
they share one stream.

No bit is certain: the less likely one has at least the probability 2**-32. The random numbers do
not depend on the logits, so that raising a logit never drops a token of the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference import _checks, fixed_point, philox
from cacovid.types import Grid

#: Tokens of a video: each is a draw of one stream, and the block's number has 24 bits.
MAX_TOKENS = 1 << 26


def bernoulli_sample(
    logits: Tensor,
    rollouts: int,
    *,
    grid: Grid | Iterable[Sequence[int]] | None = None,
    seed: int,
    offset: int = 0,
) -> Tensor:
    """Draw `G` masks in which every token is kept with the probability `sigmoid(logit)`.

    Tokens are independent of each other, so rollouts keep different numbers of them; one may keep
    none. Deterministic: the same logits, `seed` and `offset` give the same masks on every backend;
    video `i` of a call equals that video alone at `offset + i`.

    Args:
        logits: `[N]` float, finite; used in float32.
        rollouts: `G`, at least 1.
        grid: The packed videos; None: all tokens are of one video.
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream; advance it with each update of a sample.

    Returns:
        `[G, N]` bool, True where a token is kept.

    Raises:
        InvalidInputError: for NaN or infinite logits, a wrong shape or dtype, no rollouts, or a
            video of more than 2**26 tokens.

    >>> masks = bernoulli_sample(torch.tensor([40.0, 0.0, -40.0]), 1000, seed=7)
    >>> masks[:, 0].all().item(), masks[:, 2].any().item(), 450 < masks[:, 1].sum().item() < 550
    (True, False, True)
    """
    counts = video_counts(logits, grid)
    _checks.at_least_one(rollouts, "rollouts")
    logits = _checks.float32_scores(logits, sum(counts), "logits", allow_infinite=False)
    pieces = [
        _video_masks(part, rollouts, seed, offset + index)
        for index, part in enumerate(logits.split(counts))
    ]
    return torch.cat(pieces, dim=1)


def video_counts(
    logits: Tensor, grid: Grid | Iterable[Sequence[int]] | None
) -> list[int]:
    """Tokens of each video of `[N]` logits; all `N` without a grid.

    Raises:
        InvalidInputError: without tokens, or for a video with too many of them.
    """
    counts = [logits.numel()] if grid is None else list(Grid.of(grid).tokens_per_video)
    if min(counts) < 1 or max(counts) > MAX_TOKENS:
        raise InvalidInputError(
            f"the videos have {counts} tokens; expected 1 to {MAX_TOKENS:,} of each"
        )
    return counts


def keep_thresholds(logits: Tensor) -> Tensor:
    """`[N]` int64 in [1, 2**32): a token is kept where its random word is below.

    Args:
        logits: `[N]` float32, finite.
    """
    e = fixed_point.exp_value(-logits.abs())
    q = e / (torch.ones_like(e) + e)
    scale = torch.tensor(2.0**32, dtype=torch.float32, device=logits.device)
    minor = (q * scale).to(torch.int64).clamp(min=1)
    return torch.where(logits < 0, minor, (1 << 32) - minor)


def _video_masks(logits: Tensor, rollouts: int, seed: int, item: int) -> Tensor:
    device = logits.device
    words = philox.draw_words(
        philox.OP_BERNOULLI,
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.arange(rollouts, device=device),
        item,
        logits.shape[0],
        seed,
    )[:, 0]
    return words < keep_thresholds(logits)
