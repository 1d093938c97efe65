"""The exact budget and its tokens (`K3`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cacovid.ops import _arguments, _registry
from cacovid.reference import _checks
from cacovid.reference.select_tokens import SelectPlan, _select_video, select_plan
from cacovid.reference.select_tokens import select_tokens as select_tokens_reference
from cacovid.types import Grid, PerVideo

_FIELDS = 6  # integers of a SelectPlan


def select_tokens(
    token_scores: Tensor,
    frame_scores: Tensor | None,
    grid: Grid | Iterable[Sequence[int]],
    retention: PerVideo,
    *,
    policy_share: float = 0.5,
    max_frame_ratio: PerVideo | None = None,
    backend: str | None = None,
) -> Tensor:
    """The kept tokens of every video: quotas per frame, the best tokens, a uniform share.

    The quotas follow the frame scores, `policy_share` of the budget goes to the best tokens of
    each frame, the rest is spread evenly over the others (CaCoVID, arXiv 2602.01649; the exact
    statement is in `cacovid.reference.select_tokens`). Deterministic: the same scores give the
    same tokens on every backend, with any number of threads, ties to the lowest index. `K` is
    known before the scores are, so nothing waits for a device and `torch.compile` sees one shape.

    Args:
        token_scores: `[N]` float, no NaN; used in float32. Higher is kept first.
        frame_scores: `[F]` float on the same device, finite; used in float32. None counts all
            frames as equal.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        retention: `r` in (0, 1], one number or one per video.
        policy_share: `alpha` in [0, 1], the share of the budget that the scores choose.
        max_frame_ratio: `c`, bounds a frame's share, one number or one per video; `1.5*r` by
            default.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        `[K]` int64 on the scores' device, ascending, flat over the packed videos; exactly
        `max(1, floor(r*N))` of each.

    Raises:
        InvalidInputError: for NaN scores, infinite frame scores, wrong shapes, dtypes or devices,
            settings out of range, or a backend that is not to be had.

    >>> scores = torch.tensor([0.0, 3.0, 1.0, 2.0])
    >>> select_tokens(scores, None, [(1, 2, 2)], 0.5, policy_share=1.0).tolist()
    [1, 3]
    """
    grid = Grid.of(grid)
    token_scores = _arguments.scores(token_scores, grid.num_tokens, "token_scores")
    if frame_scores is not None:
        frame_scores = _arguments.scores(frame_scores, grid.num_frames, "frame_scores")
        _arguments.same_device(token_scores, frame_scores, "token_scores", "frame_scores")
    if _SPEC.choose(token_scores.device, backend) == "reference":
        return select_tokens_reference(
            token_scores,
            frame_scores,
            grid,
            retention,
            policy_share=policy_share,
            max_frame_ratio=max_frame_ratio,
        )
    integers, clips = flat_plan(select_plan(grid, retention, policy_share, max_frame_ratio))
    return _registry.call(_OP, token_scores, frame_scores, integers, clips)


def flat_plan(plans: Sequence[SelectPlan]) -> tuple[list[int], list[float]]:
    """Plans as the schema's `plan` (six integers for each video) and `clips` (one number)."""
    integers = []
    for plan in plans:
        integers += [plan.frames, plan.tokens, plan.total, plan.budget, plan.scale, plan.cap]
    return integers, [plan.clip for plan in plans]


def _reference(
    token_scores: Tensor, frame_scores: Tensor | None, plan: Sequence[int], clips: Sequence[float]
) -> Tensor:
    plans = []
    for index, clip in enumerate(clips):
        t, n, total, budget, scale, cap = plan[_FIELDS * index : _FIELDS * (index + 1)]
        plans.append(SelectPlan(t, n, total, budget, scale, cap, clip))
    num_tokens = sum(p.frames * p.tokens for p in plans)
    num_frames = sum(p.frames for p in plans)
    token_scores = _checks.float32_scores(
        token_scores, num_tokens, "token_scores", allow_infinite=True
    )
    if frame_scores is None:
        frame_scores = token_scores.new_zeros(num_frames)
    frame_scores = _checks.float32_scores(
        frame_scores, num_frames, "frame_scores", allow_infinite=False
    )
    keep, begin, first = [], 0, 0
    for p in plans:
        tokens = token_scores[begin : begin + p.frames * p.tokens].view(p.frames, p.tokens)
        keep.append(begin + _select_video(tokens, frame_scores[first : first + p.frames], p))
        begin, first = begin + p.frames * p.tokens, first + p.frames
    return torch.cat(keep)


def _fake(
    token_scores: Tensor, frame_scores: Tensor | None, plan: Sequence[int], clips: Sequence[float]
) -> Tensor:
    totals = plan[2::_FIELDS]
    return token_scores.new_empty(sum(totals), dtype=torch.int64)


_SPEC, _OP = _registry.define(
    "select_tokens",
    "(Tensor token_scores, Tensor? frame_scores, int[] plan, float[] clips) -> Tensor",
    backends=("cuda", "cpu"),
    reference=_reference,
    fake=_fake,
)
