"""Frame rollouts: which frames a rollout looks at, ALGORITHMS 1.3.

**Recipe** (normative: a backend must give the same mask for the same float32 scores; numbers in
brackets refer to `fixed_point`, draws to `philox`).

*Plan*, per video, on the host (`frame_plan`), for `t` frames and `G` rollouts:
`m = (t + 7) // 8` frames are drawn. `frame_cap="row"`: `cap = fixed_cap(3/t)` (the quotient in
float64), `floor = max(1, ONE // t**2)`. `frame_cap="published"`: `cap = ONE`, which caps nothing,
`floor = max(1, ONE // G**2)`.

*Per video* (shared by all rollouts), `z_f` the score of frame `f`:
`m_f = mass(z_f - max z)` [3], the difference rounded to float32; `c = clip_max(m, cap, floor)` [5];
as a float32 (rounded to nearest even) `float(c_f)`.

*Rollout 0* keeps the first `m` frames by rank [1]; no number is drawn.

*Rollout g >= 1*: draw 0, a word `x`, of the stream (`op = OP_FRAME`, frame `f`, rollout `g`) gives
frame `f` the time `neg_log(x) / float(c_f)` [4], one IEEE float32 division. Keep the `m` frames
with the smallest times, ties to the lowest frame.

*Output*: for each rollout a mask over the packed frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference import _checks, fixed_point, philox
from cacovid.reference.ocss import kept_per_frame
from cacovid.types import Grid, PerVideo

#: How the largest frame probabilities are limited.
FrameCap: TypeAlias = Literal["row", "published"]


@dataclass(frozen=True)
class FramePlan:
    """What the frame rollouts need to know of one video: integers made on the host, once.

    Args:
        frames: `t`.
        choose: `m`, frames that a rollout draws.
        keep: Tokens that a rollout takes inside its frames, by `density_peaks`.
        cap: Largest probability of a frame, fixed point with `fixed_point.ONE`.
        floor: Smallest, before normalising.
    """

    frames: int
    choose: int
    keep: int
    cap: int
    floor: int


def frame_plan(
    grid: Grid, ratio: PerVideo, rollouts: int, frame_cap: FrameCap = "row"
) -> tuple[FramePlan, ...]:
    """One plan per video; every backend works from these integers.

    Raises:
        InvalidInputError: for a ratio outside (0, 1], no rollouts, an unknown `frame_cap`, a
            video of more than 32,767 frames, or one for which the published cap breaks.

    >>> plan = frame_plan(Grid([(32, 14, 14)]), 0.02, 8)[0]
    >>> plan.choose, plan.keep
    (4, 128)
    """
    _checks.at_least_one(rollouts, "rollouts")
    if frame_cap not in get_args(FrameCap):
        raise InvalidInputError(
            f"frame_cap is {frame_cap!r}; expected one of {get_args(FrameCap)}"
        )
    plans = []
    for (t, h, w), r in zip(grid.sizes, _checks.ratios(grid, ratio, "ratio"), strict=True):
        if t > fixed_point.MAX_ENTRIES:
            raise InvalidInputError(
                f"a video has {t} frames; the sampler's integers hold "
                f"{fixed_point.MAX_ENTRIES} at most"
            )
        choose, n = (t + 7) // 8, h * w
        keep = min(kept_per_frame(n, r) * t, choose * n)
        if frame_cap == "row":
            cap, floor = fixed_point.fixed_cap(3 / t), fixed_point.fixed_floor(t)
        else:
            _published_holds(t, rollouts)
            cap, floor = fixed_point.ONE, fixed_point.fixed_floor(rollouts)
        plans.append(FramePlan(t, choose, keep, cap, floor))
    return tuple(plans)


def _published_holds(frames: int, rollouts: int) -> None:
    # The release caps the [G, t] matrix of equal rows as one distribution. Its floor is 1/G**2, so
    # its largest entry is at most 1/(G + (t - 1)/G); while that is below 3/t nothing is capped.
    if frames * rollouts > 3 * rollouts**2 + 3 * (frames - 1):
        raise InvalidInputError(
            f"frame_cap='published' does not hold for {frames} frames and {rollouts} rollouts: the "
            f"release caps entries of single rollouts there; use frame_cap='row'"
        )


def frame_sample(
    frame_scores: Tensor,
    grid: Grid | Iterable[Sequence[int]],
    ratio: PerVideo,
    rollouts: int,
    *,
    frame_cap: FrameCap = "row",
    seed: int,
    offset: int = 0,
) -> Tensor:
    """Draw the frames of `G` rollouts without replacement; the first is the greedy choice.

    `ceil(t/8)` frames of each video, with the weights `clip_max(softmax(frame scores), 3/t)`
    (CaCoVID, arXiv 2602.01649; recipe above). Deterministic: the same scores, plan, `seed` and
    `offset` give the same frames on every backend; video `i` of a call equals that video alone at
    `offset + i`.

    Args:
        frame_scores: `[F]` float, finite; used in float32.
        grid: The packed videos.
        ratio: As in `ocss_sample`, one number or one per video. It says how many tokens the drawn
            frames are to give (`frame_plan(...)[i].keep`); the frames do not depend on it.
        rollouts: `G`, at least 1.
        frame_cap: `"row"` limits each frame's probability to `3/t`. `"published"` is what the
            release's cap over all rollouts at once comes to: a floor of `1/G**2` and no limit
            (8 rollouts: up to 37 frames).
        seed: Key of the random numbers, modulo 2**64.
        offset: Number of the first video's stream; advance it with each update of a sample.

    Returns:
        `[G, F]` bool, True for the frames that are drawn.

    Raises:
        InvalidInputError: for NaN or infinite scores, and for settings that `frame_plan` refuses.

    >>> frame_sample(torch.tensor([1.0, 3.0, 2.0]), [(3, 2, 2)], 0.5, 1, seed=7).tolist()
    [[False, True, False]]
    """
    grid = Grid.of(grid)
    scores = _checks.float32_scores(
        frame_scores, grid.num_frames, "frame_scores", allow_infinite=False
    )
    pieces = []
    for index, plan in enumerate(frame_plan(grid, ratio, rollouts, frame_cap)):
        first, last = grid.host_video_frame_offsets[index : index + 2]
        pieces.append(sample_frames(scores[first:last], plan, rollouts, seed, offset + index))
    return torch.cat(pieces, dim=1)


def frame_weights(frame_scores: Tensor, plan: FramePlan) -> Tensor:
    """`[t]` int64: the weights `c` of one video's frames (`frame_scores`: `[t]` float32)."""
    masses = fixed_point.mass(frame_scores - frame_scores.max())
    return fixed_point.clip_max_fixed(masses[None], plan.cap, plan.floor)[0]


def sample_frames(
    frame_scores: Tensor, plan: FramePlan, rollouts: int, seed: int, item: int
) -> Tensor:
    """`[G, t]` bool: the frames of one video (`frame_scores`: `[t]` float32, finite)."""
    device = frame_scores.device
    words = philox.draw_words(
        philox.OP_FRAME,
        torch.arange(plan.frames, device=device),
        torch.arange(1, rollouts, device=device),
        item,
        1,
        seed,
    )[..., 0]
    times = fixed_point.neg_log(words) / frame_weights(frame_scores, plan).to(torch.float32)
    drawn = torch.sort(times, dim=1, stable=True).indices[:, : plan.choose]
    greedy = fixed_point.rank(frame_scores)[None, : plan.choose]
    mask = torch.zeros(rollouts, plan.frames, dtype=torch.bool, device=device)
    return mask.scatter_(1, torch.cat([greedy, drawn]), True)
