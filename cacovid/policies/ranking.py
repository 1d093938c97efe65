"""The global top-k of packed videos, without a look at the values: nothing waits for a device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cacovid.types import Grid


def highest_scores(token_scores: Tensor, grid: Grid, counts: Sequence[int]) -> Tensor:
    """The tokens of highest score of each video, over all its frames.

    Deterministic: ties go to the lowest index (0.0 and -0.0 tie).

    Args:
        token_scores: `[N]` float without NaN.
        grid: The packed videos.
        counts: How many of each.

    Returns:
        `[K]` int64, ascending, flat over the packed videos.
    """
    # A radix sort ranks -0.0 below 0.0 by their bits, a comparison sort does not.
    scores = token_scores.detach()
    scores = scores.masked_fill(scores == 0, 0.0)
    kept = []
    for (begin, end), count in zip(pairwise(grid.host_video_offsets), counts, strict=True):
        order = torch.sort(scores[begin:end], descending=True, stable=True).indices
        kept.append(begin + torch.sort(order[:count]).values)
    return torch.cat(kept)
