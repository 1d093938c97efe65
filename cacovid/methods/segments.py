"""Videos cut into runs of frames that are alike, three ways.

Where a segment begins depends on the features: the cuts are read back once per video, a number
or a row of numbers per frame; what follows is done on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cacovid.methods.density import density_peak_scores, squared_distances
from cacovid.methods.exact import exact_rows
from cacovid.methods.ranking import best


class Segments:
    """Consecutive frames `[begin, end)` that together are the video.

    Args:
        bounds: Where each begins, and the number of frames at the end.
        device: Where the tensors stand.

    Attributes:
        spans: `(begin, end)` of each.
        of_frame: `[t]` int64: each frame's segment.
        lengths: `[S]` int64.
        begins: `[S]` int64.
        is_first: `[t]` bool: the first frame of its segment.
    """

    def __init__(self, bounds: Sequence[int], device: torch.device) -> None:
        self.spans = list(pairwise(bounds))
        numbers = np.repeat(np.arange(len(self.spans)), np.diff(bounds))
        self.of_frame = torch.from_numpy(numbers).to(device)
        edges = torch.tensor(bounds, dtype=torch.int64).to(device)
        self.begins, self.lengths = edges[:-1], edges.diff()
        frames = torch.arange(bounds[-1], device=device)
        self.is_first = frames == self.begins[self.of_frame]

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the frames of each segment: `[t, ...]` to `[S, ...]`."""
        zeros = values.new_zeros((len(self.spans), *values.shape[1:]))
        return zeros.index_add_(0, self.of_frame, values)

    def means(self, values: Tensor) -> Tensor:
        """Means over the frames of each segment: `[t, ...]` to `[S, ...]`."""
        shape = (-1, *([1] * (values.dim() - 1)))
        return self.sums(values) / self.lengths.view(shape)


def by_clusters(vectors: Tensor, clusters: int, neighbours: int) -> Segments:
    """Frames clustered by density peaks, the clusters made contiguous (PruneVid).

    Args:
        vectors: `[t, D]` float32, one per frame.
        clusters: How many peaks, 1 to `t`.
        neighbours: Distances that make the density.
    """
    everyone = torch.ones(1, len(vectors), dtype=torch.bool, device=vectors.device)
    peaks = best(density_peak_scores(vectors[None], neighbours)[0], clusters)
    squared = squared_distances(exact_rows(vectors[None]), slice(None), everyone)[0]
    labels = squared.index_select(1, peaks).argmin(dim=1)
    return Segments(contiguous(labels.tolist()), vectors.device)


def contiguous(labels: Sequence[int]) -> list[int]:
    """Bounds of segments from labels of frames.

    Each label keeps its longest run if that has at least 2 frames (the first of equal ones); the
    other runs, from left to right, join the longer neighbour, the left one on ties.

    >>> contiguous([0, 0, 0, 1, 0, 1, 1])
    [0, 5, 7]
    """
    edges = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    runs = list(pairwise((0, *edges, len(labels))))
    longest: dict[int, tuple[int, int]] = {}
    for begin, end in runs:
        before = longest.get(labels[begin], (0, 1))
        if end - begin > before[1] - before[0]:
            longest[labels[begin]] = (begin, end)
    kept = [longest.get(labels[begin]) == (begin, end) for begin, end in runs]
    while len(runs) > 1 and not all(kept):
        i = kept.index(False)
        left = runs[i - 1][1] - runs[i - 1][0] if i > 0 else -1
        right = runs[i + 1][1] - runs[i + 1][0] if i + 1 < len(runs) else -1
        into = i - 1 if left >= right else i + 1
        runs[into] = (min(runs[into][0], runs[i][0]), max(runs[into][1], runs[i][1]))
        del runs[i], kept[i]
    return [*(begin for begin, _ in runs), len(labels)]


def by_gain(still: Tensor) -> tuple[Segments, Tensor]:
    """The segments that save the most tokens when still positions are merged (HoliTom).

    A segment of frames `j ... i` saves `i - j` tokens at each position that is still from each of
    its frames to the next. `saved[i] = max(saved[i - 1], max over j of saved[j - 1] + g(j, i))`;
    on ties the frame stays alone, else the longest segment is taken.

    Args:
        still: `[t - 1, n]` bool: which positions do not change from a frame to the next.

    Returns:
        The segments, and `[S, n]` bool: the positions that are still throughout (none in a
        segment of one frame).
    """
    pairs, positions = still.shape
    numbers = torch.arange(pairs, device=still.device)[:, None]
    # The first frame from which a position is still up to the end of each pair.
    since = torch.where(still, 0, numbers + 1).cummax(dim=0).values if pairs else still.long()
    counted = still.new_zeros((pairs, pairs + 1), dtype=torch.int64)
    counted.scatter_add_(1, since, torch.ones_like(since))
    throughout = counted.cumsum(dim=1).cpu().numpy()

    saved = np.zeros(pairs + 2, dtype=np.int64)  # of the first e frames
    begins = np.arange(-1, pairs + 1)  # where the last of them's segment begins
    for e in range(2, pairs + 2):
        first = np.arange(e - 1)
        gains = saved[: e - 1] + (e - 1 - first) * throughout[e - 2, : e - 1]
        j = int(gains.argmax())
        saved[e] = saved[e - 1]
        if gains[j] > saved[e]:
            saved[e], begins[e] = gains[j], j
    bounds = [pairs + 1]
    while bounds[-1] > 0:
        bounds.append(int(begins[bounds[-1]]))
    segments = Segments(bounds[::-1], still.device)
    if pairs == 0:
        return segments, still.new_zeros((1, positions))
    last = (segments.begins + segments.lengths - 2).clamp(min=0)
    throughout_now = since.index_select(0, last) <= segments.begins[:, None]
    return segments, throughout_now & (segments.lengths > 1)[:, None]


def by_cuts(cosines: Tensor, lowest: int, below: float) -> Segments:
    """Cuts at the lowest cosines of neighbouring frames, and wherever one is low (FastVID).

    Args:
        cosines: `[t - 1]` float: of each frame's vector and the next one's.
        lowest: So many cuts at the lowest ones (the first of equal ones).
        below: And wherever a cosine is below this.
    """
    at = cosines < below
    at[best(-cosines, min(lowest, len(cosines)))] = True
    cuts = (np.flatnonzero(at.cpu().numpy()) + 1).tolist()
    return Segments([0, *cuts, len(cosines) + 1], cosines.device)
