"""`holitom`: still positions averaged over the segments that save most (HoliTom, stage 1)."""

from __future__ import annotations

import torch

from cacovid.methods.cosine import cosine_to_next
from cacovid.methods.density import density_peak_scores
from cacovid.methods.ranking import best
from cacovid.methods.segments import by_gain
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens
from cacovid.types import FLOOR_EPSILON


class HoliTomMethod(PerVideoMethod):
    """Merges still positions over whole segments, and ranks the rest.

    A position is still from a frame to the next where their cosine exceeds 0.8 (0.65 at a
    retention of up to 10%). Segments are chosen so that averaging the positions that are still
    throughout saves the most tokens; the averages stand at a segment's first frame. They are kept
    first, then the tokens that are not still, by the attention that they received in the vision
    tower where the model gives it, else by density peaks of each frame. A budget beyond both takes
    averaged-away tokens as they are; one below the averages keeps the best of those.
    """

    name = "holitom"
    needs = frozenset({"vision_attention?"})

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses and merges the tokens; see `PerVideoMethod.choose`."""
        frames = video.frames
        threshold = 0.65 if retention <= 0.1 + FLOOR_EPSILON else 0.8
        segments, still = by_gain(cosine_to_next(frames) > threshold)
        is_still = still[segments.of_frame]
        stands = is_still & segments.is_first[:, None]
        tier = torch.where(stands, 0, torch.where(is_still, 2, 1))
        attention = video.extras.get("vision_attention")
        value = density_peak_scores(frames).flatten() if attention is None else attention.float()
        keep = best(value, count, tier.flatten())
        means = segments.means(frames)[segments.of_frame]
        embeds = torch.where(stands[..., None], means, frames).flatten(0, 1)
        return Choice(keep, embeds.index_select(0, keep))
