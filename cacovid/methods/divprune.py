"""`divprune`: the most spread-out tokens, by max-min diversity (DivPrune, arXiv 2503.02175)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.cosine import unit_rows
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens
from cacovid.ops import farthest_point

#: Cosines that are held at a time while the loneliest token is looked for.
HELD = 1 << 25


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
    """The row whose largest cosine to another row is smallest, ties to the lowest index.

    Args:
        rows: `[M, D]` float32, of length 1.
        held: Cosines held at a time.

    Returns:
        `[1]` int64.
    """
    count = len(rows)
    own = torch.arange(count, device=rows.device)
    nearest = []
    for block in own.split(max(1, held // count)):
        cosine = rows[block] @ rows.T
        nearest.append(cosine.masked_fill_(block[:, None] == own, -torch.inf).amax(dim=1))
    return torch.cat(nearest).argmin().view(1)


def farthest_from(rows: Tensor, first: Tensor, count: int) -> Tensor:
    """Farthest-point sampling that begins at a given row.

    Args:
        rows: `[M, D]` float32, of length 1: there `1 - cos` is half the squared distance.
        first: `[1]` int64: the row to begin at.
        count: Rows to take.

    Returns:
        `[count]` int64, ascending.
    """
    # The op begins at the row farthest from the mean. One more row is put so far out in a
    # dimension of its own that it is that one; and opposite to `first` in all others, so that
    # `first` follows it. It is farther from every row than any two rows are from each other, and
    # has no say after that.
    outside = torch.nn.functional.pad(-rows.index_select(0, first), (0, 1), value=8.0)
    placed = torch.cat((torch.nn.functional.pad(rows, (0, 1)), outside))
    return farthest_point(placed, count + 1)[:-1]
