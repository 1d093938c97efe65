"""Frame rollouts: which frames a rollout looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.reference import _checks
from cacovid.reference.frame_sample import FramePlan, frame_plan, sample_frames
from cacovid.reference.frame_sample import frame_sample as frame_sample_reference
from cacovid.types import Grid, PerVideo

if TYPE_CHECKING:
    from cacovid.reference.frame_sample import FrameCap

_FIELDS = 4  # integers of a FramePlan that the frames depend on


def frame_sample(
    frame_scores: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    ratio: PerVideo,
    rollouts: int,
    *,
    frame_cap: FrameCap = "row",
    seed: int,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Draw the frames of `G` rollouts without replacement; the first is the greedy choice.

    `ceil(t/8)` frames of each video, with the weights `clip_max(softmax(frame scores), 3/t)`
    (CaCoVID, arXiv 2602.01649; the exact statement is in `cacovid.reference.frame_sample`).
    Deterministic: the same scores, settings, `seed` and `offset` give the same frames on every
    backend; video `i` of a call equals that video alone at `offset + i`. No gradient flows back.

    Args:
        frame_scores: `[F]` float, finite; used in float32.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        ratio: As in `ocss_sample`, in (0, 1], one number or one per video. It says how many tokens
            the drawn frames are to give; the frames do not depend on it.
        rollouts: `G`, at least 1.
        frame_cap: `"row"` limits each frame's probability to `3/t`; `"published"` follows the
            release, which limits nothing but raises each to `1/G**2` (8 rollouts: up to 37 frames).
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[G, F]` bool on the scores' device, True for the frames that are drawn.

    Raises:
        InvalidInputError: for NaN or infinite scores, wrong shapes or dtypes, settings out of
            range, or a backend that is not to be had.

    >>> frame_sample(torch.tensor([1.0, 3.0, 2.0]), [(3, 2, 2)], 0.5, 1, seed=7).tolist()
    [[False, True, False]]
    """
    grid = Grid.of(grid)
    frame_scores = _arguments.scores(frame_scores, grid.num_frames, "frame_scores")
    if _SPEC.choose(frame_scores.device, backend) == "reference":
        return frame_sample_reference(
            frame_scores, grid, ratio, rollouts, frame_cap=frame_cap, seed=seed, offset=offset
        )
    plan = flat_plan(frame_plan(grid, ratio, rollouts, frame_cap))
    seed, offset = _arguments.as_int64(seed), _arguments.as_int64(offset)
    return _registry.call(_OP, frame_scores, plan, rollouts, seed, offset)


def flat_plan(plans: Sequence[FramePlan]) -> list[int]:
    """Plans as the schema's `plan`: four integers for each video."""
    integers = []
    for plan in plans:
        integers += [plan.frames, plan.choose, plan.cap, plan.floor]
    return integers


def _reference(
    frame_scores: Tensor, plan: Sequence[int], rollouts: int, seed: int, offset: int
) -> Tensor:
    plans = [
        FramePlan(plan[i], plan[i + 1], 0, plan[i + 2], plan[i + 3])
        for i in range(0, len(plan), _FIELDS)
    ]
    count = sum(p.frames for p in plans)
    scores = _checks.float32_scores(frame_scores, count, "frame_scores", allow_infinite=False)
    pieces, first = [], 0
    for index, p in enumerate(plans):
        own = scores[first : first + p.frames]
        pieces.append(sample_frames(own, p, rollouts, seed, offset + index))
        first += p.frames
    return torch.cat(pieces, dim=1)


def _fake(
    frame_scores: Tensor, plan: Sequence[int], rollouts: int, seed: int, offset: int
) -> Tensor:
    return frame_scores.new_empty((rollouts, sum(plan[::_FIELDS])), dtype=torch.bool)


_SPEC, _OP = _registry.define(
    "frame_sample",
    "(Tensor frame_scores, int[] plan, int rollouts, int seed, int offset) -> Tensor",
    backends=("cuda", "cpu"),
    reference=_reference,
    fake=_fake,
)
