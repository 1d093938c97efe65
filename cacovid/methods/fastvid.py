"""`fastvid`: salient tokens, and anchors that others merge into (FastVID, arXiv 2503.11187)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.cosine import cosine_to_next
from cacovid.methods.density import HELD, density_peak_scores
from cacovid.methods.exact import exact_unit_rows
from cacovid.methods.ranking import best, members, ranks
from cacovid.methods.segments import Segments, by_cuts
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens, even_shares

#: Cuts at the lowest cosines of neighbouring frames, and wherever one is below.
CUTS, CUT_BELOW = 7, 0.9

#: Every so many-th frame of a segment holds its anchors.
ANCHOR_STEP = 4

#: Least weight of an anchor in what is merged into it.
ANCHOR_WEIGHT = 0.6


class FastVidMethod(PerVideoMethod):
    """Of each frame's budget 60% go to salient tokens, the rest to anchors of its segment.

    The video is cut at the 7 lowest cosines of neighbouring frames' means and wherever one is below
    0.9. Every frame gets an even share of the budget. Salient are the tokens with the most
    attention of the vision tower's pooling head where the model gives it, else those farthest from
    the frame's mean. The anchors of a segment are density peaks among the other tokens of every
    fourth frame; tokens that are not kept merge into the anchor of their segment with the largest
    cosine: `w * anchor + (1 - w) * mean of the merged`, `w = max(1 / (count + 1), 0.6)`. Where
    anchor frames are too small for their share, further salient tokens are kept.
    """

    name = "fastvid"
    needs = frozenset({"vision_pooling_attention?"})

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses and merges the tokens; see `PerVideoMethod.choose`."""
        frames = video.frames
        t, n, _ = frames.shape
        device = frames.device
        vectors = frames.mean(dim=1)
        segments = by_cuts(cosine_to_next(vectors), CUTS, CUT_BELOW)

        shares = even_shares(count, t)
        salient_shares = [(6 * share + 5) // 10 for share in shares]
        anchor_shares = _anchor_shares(shares, salient_shares, segments, n)
        attention = video.extras.get("vision_pooling_attention")
        saliency = (
            (frames - vectors[:, None]).square().sum(dim=-1)
            if attention is None
            else attention.float().view(t, n)
        )
        quota = torch.tensor(salient_shares).to(device)
        salient = ranks(saliency) < quota[:, None]
        at = [frame for frame, share in enumerate(anchor_shares) if share]
        anchors = torch.zeros_like(salient)
        if at:
            places = torch.tensor(at).to(device)
            quota = torch.tensor([anchor_shares[frame] for frame in at]).to(device)
            others = ~salient[places]
            scores = density_peak_scores(frames[places], members=others)
            anchors[places] = ranks(scores, others) < quota[:, None]  # at most as many as others
        keep = best(saliency.flatten(), count, ~(salient | anchors).flatten())
        rows = video.rows
        if at:
            merged = torch.ones(len(rows), dtype=torch.bool, device=device)
            merged.index_fill_(0, keep, False)
            anchor = members(anchors.flatten(), sum(anchor_shares))
            number = segments.of_frame.repeat_interleave(n)
            rows = rows.index_copy(0, anchor, merge_into(rows, anchor, merged, number))
        return Choice(keep, rows.index_select(0, keep))


def _anchor_shares(
    shares: tuple[int, ...], salient: list[int], segments: Segments, tokens: int
) -> list[int]:
    """Anchors of each frame: what the salient tokens of its segment leave, evenly over every
    fourth frame, at most as many as the frame has other tokens."""
    out = [0] * len(shares)
    for begin, end in segments.spans:
        left = sum(shares[begin:end]) - sum(salient[begin:end])
        at = range(begin, end, ANCHOR_STEP)
        for frame, share in zip(at, even_shares(left, len(at)), strict=True):
            out[frame] = min(share, tokens - salient[frame])
    return out


def merge_into(
    rows: Tensor, anchor: Tensor, merged: Tensor, segment: Tensor, held: int = HELD
) -> Tensor:
    """Anchors with what merged into them.

    Args:
        rows: `[N, D]` float32.
        anchor: `[A]` int64: the anchors' rows.
        merged: `[N]` bool: rows that merge into the anchor of their segment with the largest
            cosine, the first of equal ones; those of a segment without anchors do not.
        segment: `[N]` int64: each row's segment.
        held: Cosines held at a time.

    Returns:
        `[A, D]` float32.
    """
    anchors = exact_unit_rows(rows[anchor])
    nearest, found = [], []
    for some in torch.arange(len(rows), device=rows.device).split(max(1, held // len(anchor))):
        cosine = exact_unit_rows(rows[some]) @ anchors.T
        cosine.masked_fill_(segment[some, None] != segment[anchor], -torch.inf)
        largest = cosine.max(dim=1)
        nearest.append(largest.indices)
        found.append(~largest.values.isinf())
    into = torch.cat(nearest)
    weight = (merged & torch.cat(found)).to(rows.dtype)
    own = rows.index_select(0, anchor)
    sums = torch.zeros_like(own).index_add_(0, into, rows * weight[:, None])
    counts = own.new_zeros(len(own)).index_add_(0, into, weight)[:, None]
    share = (1.0 / (counts + 1.0)).clamp(min=ANCHOR_WEIGHT)
    return share * own + (1.0 - share) * sums / counts.clamp(min=1.0)
