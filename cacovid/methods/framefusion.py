"""`framefusion`: tokens like the frame before merge layer by layer (arXiv 2501.01986)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cacovid.methods.cosine import cosine_to_next
from cacovid.methods.fastv import keep_attended, without
from cacovid.methods.inside import InsideMethod, LayerHook, Reduced
from cacovid.methods.ranking import best
from cacovid.types import PerVideo, Prompt

#: Cosine from which a token merges into the one before.
ALIKE = 0.6

#: Merging ends when less than this share of a video's tokens merges.
FEWEST = 0.1


class FrameFusionMethod(InsideMethod):
    """Merges over time, then prunes once.

    Before layer 0 and after each layer, a token merges into the previous token that is still there
    at its position if their hidden states' cosine is at least 0.6 (a first one never; runs merge
    into their first, by their mean), until less than 10% of a video's tokens merge or its budget
    is met; no more merge than meet it, the most alike first. Then, once, the tokens with the most
    attention of the last prompt token in the layer before are kept, as many as meet the budget of
    token-layers, which stands for the FLOPs; see `LayerHook`. A video that still merges is pruned
    as well before the last layer at which its budget can be met. How many tokens merge is read
    back from the device, once per video and layer while they do.
    """

    name = "framefusion"

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> LayerHook:
        """The hook for one prompt; see `InsideMethod.__call__`."""
        return _FrameFusionHook(self.name, prompt, retention)


class _FrameFusionHook(LayerHook):
    def begin(self, depth: int) -> None:
        super().begin(depth)
        self._merging = [True] * self.grid.num_videos
        self._pruned = [False] * self.grid.num_videos

    def reduce(
        self, layer: int, hidden: Tensor, received: Callable[[], Tensor] | None
    ) -> Reduced | None:
        reduced = None
        if any(self._merging):
            reduced = self._merge(layer, hidden)
        due = [not m and not p for m, p in zip(self._merging, self._pruned, strict=True)]
        if not any(due) or received is None:
            return reduced
        self._pruned = [p or d for p, d in zip(self._pruned, due, strict=True)]
        if reduced is None:
            return keep_attended(self, layer, hidden, received, due)
        # Merged and pruned before the same layer: attention of the rows that stayed.
        now, rows = self.token, reduced.rows
        self.token = now.index_select(0, rows)
        attention = received
        fewer = keep_attended(
            self, layer, reduced.hidden, lambda: attention().index_select(0, rows), due
        )
        self.token = now
        if fewer is None:
            return reduced
        return Reduced(rows.index_select(0, fewer.rows), fewer.hidden)

    def _merge(self, layer: int, hidden: Tensor) -> Reduced | None:
        dropped = torch.zeros_like(self.token, dtype=torch.bool)
        changed = False
        for video in range(self.grid.num_videos):
            if not self._merging[video]:
                continue
            now, target = self.counts_now[video], self.target(video, layer)
            merged = 0
            if now > target:
                rows = self.rows_of(video)
                begin = self.grid.host_video_offsets[video]
                t, h, w = self.grid.sizes[video]
                token = self.token.index_select(0, rows) - begin
                # By position, then by frame: a token stands behind the one before it in time.
                rows = rows.index_select(0, torch.argsort(token % (h * w) * t + token // (h * w)))
                place = (self.token.index_select(0, rows) - begin) % (h * w)
                into = merges(hidden.index_select(0, rows), place, now - target)
                merged = int(into.sum())
                if merged:
                    hidden = hidden.index_copy(0, rows, means_of_runs(hidden[rows], into))
                    dropped.index_copy_(0, rows, into)
                    self.counts_now[video] = now - merged
                    changed = True
            if self.counts_now[video] <= target or merged < FEWEST * now:
                self._merging[video] = False
            elif layer and self._left(video) - self.counts_now[video] < self.depth - layer - 1:
                self._merging[video] = False  # layers after this one could not meet the budget
        return without(dropped, hidden, self) if changed else None


def merges(rows: Tensor, place: Tensor, most: int) -> Tensor:
    """Which tokens merge into the one before.

    Args:
        rows: `[n, D]`, by position, then by frame.
        place: `[n]` int64: positions.
        most: So many at most, those with the largest cosines (the first of equal ones).

    Returns:
        `[n]` bool.
    """
    cosine = cosine_to_next(rows.float())
    cosine = cosine.masked_fill(place[1:] != place[:-1], -torch.inf)
    alike = cosine >= ALIKE
    chosen = torch.zeros_like(alike)
    chosen.index_fill_(0, best(cosine, min(most, len(cosine))), True)
    return torch.nn.functional.pad(alike & chosen, (1, 0))


def means_of_runs(rows: Tensor, into: Tensor) -> Tensor:
    """`[n, D]`: rows that begin a run of merging ones have its mean, the others are as they are."""
    run = (~into).to(torch.int64).cumsum(0) - 1
    wide = rows.float()
    sums = torch.zeros_like(wide).index_add_(0, run, wide)
    sizes = wide.new_zeros(len(rows)).index_add_(0, run, torch.ones_like(wide[:, 0]))
    means = (sums / sizes.clamp(min=1.0)[:, None]).index_select(0, run)
    return torch.where(into[:, None], rows, means.to(rows.dtype))
