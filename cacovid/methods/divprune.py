"""`divprune`: the most spread-out tokens, by max-min diversity (DivPrune, arXiv 2503.02175)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.cosine import unit_rows
from cacovid.methods.density import HELD, squared_distances
from cacovid.methods.exact import exact_rows
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens
from cacovid.ops import farthest_point

#: Rows that are compared with all later ones at a time while the loneliest is looked for.
HEIGHT = 256


class DivPruneMethod(PerVideoMethod):
    """Keeps tokens whose smallest distance to one another is large; distance `1 - cos`.

    First the token whose distance to its nearest other token is largest; then, one at a time, the
    token with the largest minimum distance to those chosen. A running minimum over one row of
    distances per step, O(kN), never an N x N matrix; ties to the lowest index. A token of zeros
    counts as at distance 1/2 from every other one.
    """

    name = "divprune"

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses the tokens; see `PerVideoMethod.choose`."""
        rows = unit_rows(video.rows)
        return Choice(farthest_from(rows, loneliest(rows), count))


def loneliest(rows: Tensor, held: int = HELD) -> Tensor:
    """The row whose nearest other row is farthest, ties to the lowest index.

    Args:
        rows: `[M, D]` float32, of length 1.
        held: Distances held at a time.

    Returns:
        `[1]` int64.
    """
    count = len(rows)
    exact = exact_rows(rows[None])
    everyone = torch.ones(1, count, dtype=torch.bool, device=rows.device)
    nearest = exact.new_full((count,), torch.inf)
    height = max(1, min(HEIGHT, held // count))
    for begin in range(0, count, height):
        # Distances are symmetric: those to the rows before were the columns of earlier blocks.
        squared = squared_distances(exact[:, begin:], slice(0, height), everyone[:, begin:])[0]
        squared.fill_diagonal_(torch.inf)
        own, later = nearest[begin : begin + height], nearest[begin:]
        torch.minimum(own, squared.amin(dim=1), out=own)
        torch.minimum(later, squared.amin(dim=0), out=later)
    return nearest.argmax().view(1)


def farthest_from(rows: Tensor, first: Tensor, count: int) -> Tensor:
    """Farthest-point sampling that begins at a given row.

    Args:
        rows: `[M, D]` float32, of length 1 (there `1 - cos` is half the squared distance) or 0.
        first: `[1]` int64: the row to begin at.
        count: Rows to take.

    Returns:
        `[count]` int64, ascending.
    """
    if count == 1:
        return first
    # The op begins at the row farthest from the mean. One more row is put so far out in a
    # dimension of its own that it is that one; and opposite to `first` in all others, so that
    # `first` follows it. It is farther from every row than any two rows are from each other, and
    # has no say after that.
    # A `first` of zeros has no opposite: it is the nearest to that row, not the farthest. There the
    # row is put farther out, and rows of zeros a little to the other side: (H + e)^2 > H^2 + 1,
    # which moves them by e^2 = 2^-40 of what any other row is at.
    zero = ~rows.any(dim=1)
    from_zero = zero.index_select(0, first)
    distance = torch.where(from_zero, 2.0**20, 8.0)
    shift = torch.where(zero & from_zero, -(2.0**-20), 0.0)
    outside = torch.cat((-rows.index_select(0, first), distance[:, None].to(rows.dtype)), dim=1)
    placed = torch.cat((torch.cat((rows, shift[:, None].to(rows.dtype)), dim=1), outside))
    return farthest_point(placed, count + 1)[:-1]
