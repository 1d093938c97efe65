"""`fewer_frames`: whole frames, evenly spaced. The control for methods that gain by frames."""

from __future__ import annotations

import torch

from cacovid.methods.uniform import even_positions
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens
from cacovid.types import Prompt


class FewerFramesMethod(PerVideoMethod):
    """Keeps whole frames, evenly spaced, until the budget is full.

    `f = ceil(k / n)` frames at `round(j * (t - 1) / (f - 1))`; of the last one the
    `k - (f - 1) * n` evenly spaced tokens that are left.
    """

    name = "fewer_frames"

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses the frames; see `PerVideoMethod.choose`."""
        t, n = video.size[0], video.size[1] * video.size[2]
        device = video.features.device
        frames = -(-count // n)
        begins = even_positions(t, frames, device) * n
        whole = begins[:-1, None] + torch.arange(n, device=device)
        last = begins[-1] + even_positions(n, count - (frames - 1) * n, device)
        return Choice(torch.cat((whole.flatten(), last)))

    def _check(self, prompt: Prompt) -> None:
        """Nothing: no value is read."""
