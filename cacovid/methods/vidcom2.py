"""`vidcom2`: tokens unlike their frame and their video (VidCom2, arXiv 2505.14454)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.base import ScoredMethod
from cacovid.methods.cosine import unit_rows
from cacovid.methods.finite import require_finite
from cacovid.methods.ranking import best, ranks
from cacovid.methods.video_tokens import each_video
from cacovid.types import PerVideo, Prompt, Scores, Selection

#: Widths of the sum of Gaussian kernels.
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)

#: Of the softmax over the frames' uniqueness.
TEMPERATURE = 0.01


class VidCom2Method(ScoredMethod):
    """Keeps tokens unlike the mean of their frame and of the video; unique frames get more.

    On the half of the channels with the lowest variance, rows of length 1: `G(x, c) = sum over a
    of exp(-|x - c|^2 / 2a)`, `S = G(x, mean of the video) + G(x, mean of the frame)`, lowest kept.
    A frame's uniqueness is `u_t = -mean G(x, mean of the video)`; its quota
    `k_t = clamp(round(n * min(1, r * (1 + p_t - mean p))), 1, n)`, `p = softmax(u / 0.01)`. Quotas
    that miss the budget are made good by S: the highest kept go, or the lowest others come.
    """

    name = "vidcom2"
    question_aware = False

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """`-S` of the tokens and `u` of the frames, float32; see `ScoredMethod.scores`.

        Raises:
            InvalidInputError: for NaN or infinite features; see `require_finite`.
        """
        require_finite(prompt.video_embeds, "feature row of video token", self.name)
        tokens, frames = [], []
        for video in each_video(prompt):
            x = unit_rows(_steady_channels(video.frames))
            of_video = kernel_sum(x - x.mean(dim=(0, 1)))
            tokens.append(-(of_video + kernel_sum(x - x.mean(dim=1, keepdim=True))).flatten())
            frames.append(-of_video.mean(dim=1))
        return Scores(torch.cat(tokens), torch.cat(frames))

    def select(self, scores: Scores, prompt: Prompt, retention: PerVideo) -> Selection:
        """The lowest S within each frame's quota; see `ScoredMethod.select`."""
        grid = prompt.grid
        counts = grid.budgets(retention)
        ratios = grid.per_video(retention, "retention")
        assert scores.frame is not None
        tokens = scores.token.split(grid.tokens_per_video)
        frames = scores.frame.split(grid.frames_per_video)
        kept = []
        for index, (t, h, w) in enumerate(grid.sizes):
            quota = frame_quotas(frames[index], ratios[index], h * w)
            outside = ranks(tokens[index].view(t, h * w)) >= quota[:, None]
            keep = best(tokens[index], counts[index], outside.flatten())
            kept.append(grid.host_video_offsets[index] + keep)
        return Selection(torch.cat(kept), grid, counts)


def kernel_sum(difference: Tensor) -> Tensor:
    """`sum over a of exp(-|difference|^2 / 2a)` along the last dimension."""
    squared = difference.square().sum(dim=-1)
    return torch.stack([torch.exp(-squared / (2 * a)) for a in WIDTHS]).sum(dim=0)


def frame_quotas(uniqueness: Tensor, ratio: float, tokens: int) -> Tensor:
    """`k_t` of each frame, `[t]` float with whole values, from `u` `[t]`."""
    p = torch.softmax((uniqueness - uniqueness.max()) / TEMPERATURE, dim=0)
    share = (ratio * (1.0 + p - p.mean())).clamp(max=1.0)
    return (tokens * share).round().clamp(1, tokens)


def _steady_channels(frames: Tensor) -> Tensor:
    """The half of the channels (at least one) with the lowest variance over all tokens."""
    half = max(1, frames.shape[-1] // 2)
    variance = frames.flatten(0, 1).var(dim=0, unbiased=False)
    return frames.index_select(-1, best(-variance, half))
