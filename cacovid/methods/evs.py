"""`evs`: tokens that differ from the frame before (Efficient Video Sampling, arXiv 2510.14624)."""

from __future__ import annotations

import torch

from cacovid.methods.base import ScoredMethod
from cacovid.methods.cosine import change_to_next
from cacovid.methods.uniform import even_positions
from cacovid.methods.video_tokens import each_video
from cacovid.types import PerVideo, Prompt, Scores, Selection


class EvsMethod(ScoredMethod):
    """Keeps the tokens that are least like the token at their place one frame before.

    Score `1 - cos(x[t, i], x[t-1, i])`, infinite in the first frame, which comes first; the `k`
    largest of the video. Where nothing changes it is 0; a token of zeros is at 1/2 from any other.
    A budget below one frame is spent on evenly spaced tokens of the first.
    """

    name = "evs"
    question_aware = False

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """Dissimilarity to the frame before, `[N]` float32; see `ScoredMethod.scores`."""
        parts = []
        for video in each_video(prompt):
            change = change_to_next(video.frames)
            first = change.new_full((1, video.frames.shape[1]), torch.inf)
            parts.append(torch.cat((first, change)).flatten())
        return Scores(torch.cat(parts))

    def select(self, scores: Scores, prompt: Prompt, retention: PerVideo) -> Selection:
        """The `k` largest; see `ScoredMethod.select`."""
        grid = prompt.grid
        ranked = super().select(scores, prompt, retention)
        parts = list(ranked.keep.split(ranked.counts))
        for index, (_, h, w) in enumerate(grid.sizes):
            if ranked.counts[index] < h * w:
                even = even_positions(h * w, ranked.counts[index], ranked.keep.device)
                parts[index] = grid.host_video_offsets[index] + even
        return Selection(torch.cat(parts), grid, ranked.counts)
