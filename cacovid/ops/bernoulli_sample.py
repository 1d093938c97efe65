"""Rollouts that keep every token by a coin of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.reference import _checks
from cacovid.reference import bernoulli_sample as bernoulli_sample_reference
from cacovid.reference.bernoulli import video_counts
from cacovid.types import Grid


def bernoulli_sample(
    logits: Tensor,
    rollouts: int,
    *,
    grid: Grid | Iterable[Sequence[int]] | None = None,
    seed: int,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Draw `G` masks in which every token is kept with the probability `sigmoid(logit)`.

    The rollouts of SCORE (arXiv 2603.26365; the exact statement is in
    `cacovid.reference.bernoulli`). Tokens are independent of each other, so rollouts keep different
    numbers of them: `pack_rollouts` takes the ragged masks as they are. One may keep none.
    Deterministic: the same logits, `seed` and `offset` give the same masks on every backend, with
    any number of threads; video `i` of a call equals that video alone at `offset + i`. Raising a
    logit never drops a token of the same seed. No gradient flows back.

    Args:
        logits: `[N]` float, finite; used in float32.
        rollouts: `G`, at least 1.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`; None: all tokens are of one
            video.
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream; advance it with each update of a sample.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[G, N]` bool on the logits' device, True where a token is kept.

    Raises:
        InvalidInputError: for NaN or infinite logits, a wrong shape or dtype, no rollouts, a video
            of more than 2**26 tokens, or a backend that is not to be had.

    >>> masks = bernoulli_sample(torch.tensor([40.0, 0.0, -40.0]), 1000, seed=7)
    >>> masks[:, 0].all().item(), masks[:, 2].any().item(), 450 < masks[:, 1].sum().item() < 550
    (True, False, True)
    """
    counts = video_counts(logits, grid)
    logits = _arguments.scores(logits, sum(counts), "logits")
    rollouts = _checks.at_least_one(rollouts, "rollouts")
    if _SPEC.choose(logits.device, backend) == "reference":
        return bernoulli_sample_reference(logits, rollouts, grid=grid, seed=seed, offset=offset)
    seed, offset = _arguments.as_int64(seed), _arguments.as_int64(offset)
    return _registry.call(_OP, logits, counts, rollouts, seed, offset)


def _reference(
    logits: Tensor, counts: Sequence[int], rollouts: int, seed: int, offset: int
) -> Tensor:
    grid = Grid([(1, 1, count) for count in counts])
    return bernoulli_sample_reference(logits, rollouts, grid=grid, seed=seed, offset=offset)


def _fake(logits: Tensor, counts: Sequence[int], rollouts: int, seed: int, offset: int) -> Tensor:
    return logits.new_empty((rollouts, logits.shape[0]), dtype=torch.bool)


_SPEC, _OP = _registry.define(
    "bernoulli_sample",
    "(Tensor logits, int[] counts, int rollouts, int seed, int offset) -> Tensor",
    backends=("cuda", "cpu"),
    reference=_reference,
    fake=_fake,
)
