"""Frame rollouts: which frames a rollout looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry
from cacovid.types import Grid, PerVideo

_SPEC = _registry.reference_only("frame_sample")


def frame_sample(
    frame_scores: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    ratio: PerVideo,
    rollouts: int,
    *,
    seed: int,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Draw the frames of `G` rollouts without replacement; the first is the greedy choice.

    Deterministic: the same scores, settings, `seed` and `offset` give the same frames on every
    backend (CaCoVID, arXiv 2602.01649; the exact statement is in `cacovid.reference`).

    Args:
        frame_scores: `[F]` float, finite; used in float32.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        ratio: As in `ocss_sample`, in (0, 1].
        rollouts: `G`, at least 1.
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[G, F]` bool, True for the frames that are drawn.

    Raises:
        InvalidInputError: for broken scores, wrong shapes, settings out of range, or a backend
            that is not to be had.
    """
    _SPEC.choose(frame_scores.device, backend)
    return reference.frame_sample(frame_scores, grid, ratio, rollouts, seed=seed, offset=offset)
