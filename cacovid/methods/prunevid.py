"""`prunevid`: still positions averaged over time, the rest clustered (PruneVid, stage 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.cosine import unit_rows
from cacovid.methods.density import HELD, density_peak_scores, squared_distances
from cacovid.methods.exact import exact_rows
from cacovid.methods.ranking import best, ranks
from cacovid.methods.segments import Segments, by_clusters
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens

#: Mean pairwise cosine above which a position is still.
STILL = 0.8

#: Distances that make a density.
NEIGHBOURS = 7

#: Sets of up to so many tokens are not clustered.
SMALL = 14


class PruneVidMethod(PerVideoMethod):
    """Merges in time, then in space.

    Frames are clustered by density peaks into `t // 4` segments. A position whose mean pairwise
    cosine over the segment's frames exceeds 0.8 is averaged into one token, at the first frame.
    The still tokens of a segment, and the others of each frame, are one set each; a set above 14
    tokens is clustered by density peaks to its share of the budget, `floor(size * k / sizes)` and
    at least 1, and its clusters' means stand at the peaks. Then the lowest `rho * delta` are cut,
    or the highest others added as they are, to the exact budget.
    """

    name = "prunevid"

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses and merges the tokens; see `PerVideoMethod.choose`."""
        frames = video.frames
        clusters = max(1, len(frames) // 4)
        segments = by_clusters(frames.mean(dim=1), clusters, NEIGHBOURS)
        still = still_positions(frames, segments)
        # One set per segment, then one per frame.
        rows = torch.cat((segments.means(frames), frames))
        is_still = still[segments.of_frame]
        inside = torch.cat((still, ~is_still))
        scores = density_peak_scores(rows, NEIGHBOURS, inside)
        sizes = inside.sum(dim=1)
        share = (sizes * count // sizes.sum()).clamp(min=1)
        quota = torch.where(sizes > SMALL, share, sizes)
        peaks = (ranks(scores, inside) < quota[:, None]) & inside
        merged = cluster_means(rows, inside, peaks)

        cut = len(segments.spans)

        def of_tokens(of_sets: Tensor) -> Tensor:
            """Each token's entry: of its segment's set where it is still, of its frame's else."""
            shape = (*is_still.shape, *([1] * (of_sets.dim() - 2)))
            return torch.where(is_still.view(shape), of_sets[segments.of_frame], of_sets[cut:])

        # A segment's still tokens stand at its first frame; the later ones come last of all.
        later = is_still & ~segments.is_first[:, None]
        stands = of_tokens(peaks) & ~later
        tier = torch.where(stands, 0, torch.where(later, 2, 1))
        keep = best(of_tokens(scores).flatten(), count, tier.flatten())
        embeds = torch.where(stands[..., None], of_tokens(merged), frames).flatten(0, 1)
        return Choice(keep, embeds.index_select(0, keep))


def still_positions(frames: Tensor, segments: Segments) -> Tensor:
    """`[S, n]` bool: mean pairwise cosine over the segment's frames above 0.8.

    The sum over pairs is `(|sum of unit rows|^2 - sum of their squares) / 2`. A segment of one
    frame has no pairs, and no still position.
    """
    unit = unit_rows(frames)
    together = segments.sums(unit).square().sum(dim=-1)
    alone = segments.sums(unit.square().sum(dim=-1))
    length = segments.lengths[:, None]
    pairs = (length * (length - 1)).clamp(min=1)
    return ((together - alone) / pairs > STILL) & (length > 1)


def cluster_means(rows: Tensor, inside: Tensor, peaks: Tensor, held: int = HELD) -> Tensor:
    """Means of the members nearest to each peak, at the peaks' places.

    Args:
        rows: `[B, M, D]` float32: `B` sets.
        inside: `[B, M]` bool: members.
        peaks: `[B, M]` bool: the members that the others join, at least one where there are any;
            a peak stays with itself, others go to the lowest index of equally near ones.
        held: Distances held at a time.

    Returns:
        `[B, M, D]`: means at the peaks, zeros elsewhere.
    """
    count = rows.shape[1]
    own = torch.arange(count, device=rows.device)
    joined = []
    at_once = max(1, held // (count * count))
    for some, members, at in zip(
        rows.split(at_once), inside.split(at_once), peaks.split(at_once), strict=True
    ):
        squared = squared_distances(exact_rows(some, members), slice(None), members)
        nearest = squared.masked_fill(~at[:, None, :], torch.inf).argmin(dim=-1)
        joined.append(torch.where(at, own, nearest))
    into = torch.cat(joined)
    weight = inside.to(rows.dtype)
    sums = torch.zeros_like(rows).scatter_add_(
        1, into[..., None].expand_as(rows), rows * weight[..., None]
    )
    sizes = torch.zeros_like(weight).scatter_add_(1, into, weight)
    return sums / sizes.clamp(min=1.0)[..., None]
