"""`cdpruner`: diverse tokens that the question asks for (CDPruner, arXiv 2506.10967)."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.methods.cosine import unit_rows
from cacovid.methods.exact import first_copies
from cacovid.methods.ranking import members
from cacovid.methods.video_tokens import Choice, PerVideoMethod, VideoTokens

#: Below this a token adds nothing to what is chosen but rounding (a chosen one's copy).
NOTHING = 1e-5


class CDPrunerMethod(PerVideoMethod):
    """Greedy MAP of a determinantal point process, conditioned on the question.

    Kernel `L = diag(p) S diag(p)`, S the cosines, p the cosine of a token to the mean question
    embedding, brought to [0, 1] over the video. `k` times the token that adds most to the
    determinant, ties to the lowest index. When nothing is added any more (every gain at most 1e-5,
    as of copies, or beyond as many tokens as dimensions), the tokens of the highest p that are
    left.

    Raises:
        InvalidInputError: when called on a prompt without question tokens.
    """

    name = "cdpruner"
    question_aware = True

    def choose(self, video: VideoTokens, count: int, retention: float) -> Choice:
        """Chooses the tokens; see `PerVideoMethod.choose`."""
        if len(video.question) == 0:
            raise InvalidInputError(
                "cdpruner compares tokens with the question, and the prompt has no question "
                "tokens; pass question= or a prompt with question_index"
            )
        first = first_copies(video.rows)
        rows = unit_rows(video.rows).index_select(0, first)
        relevance = (rows @ unit_rows(video.question.mean(dim=0))).index_select(0, first)
        low, high = relevance.min(), relevance.max()
        spread = high - low
        relevance = torch.where(spread > 0, (relevance - low) / spread, torch.ones_like(relevance))
        return Choice(greedy_determinant(rows, relevance, count, first))


def greedy_determinant(
    rows: Tensor, relevance: Tensor, count: int, first: Tensor | None = None
) -> Tensor:
    """The greedy maximum of `det L` over `count` rows, by incremental Cholesky.

    Each step takes the row of the largest gain `g`, and lowers all gains by the squares of
    `e = (L_j - sum over the steps before of c_s c_s[j]) / sqrt(g_j)` (Chen et al., 2018).

    Args:
        rows: `[M, D]` float32, of length 1.
        relevance: `[M]` float32 in [0, 1].
        count: Rows to take.
        first: `[M]` int64: the first copy of each row, from `first_copies`. A product of matrices
            gives copies results that differ by rounding, and with this they all have the first's.

    Returns:
        `[count]` int64, ascending; ties to the lowest index. O(count * M * (D + count)) work,
        `[count, M]` memory; nothing is read back between the steps.
    """
    rows = rows * relevance[:, None]
    gain = rows.square().sum(dim=1)
    if first is not None:
        gain = gain.index_select(0, first)
    taken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    steps = rows.new_zeros(count, len(rows))
    for step in range(count):
        # Where the kernel is used up, relevance decides.
        value = torch.where(gain > NOTHING, gain, NOTHING * relevance)
        chosen = value.masked_fill(taken, -1.0).argmax().view(1)
        taken.index_fill_(0, chosen, True)
        before = steps[:step]
        along = rows @ rows.index_select(0, chosen).squeeze(0)
        along = along - before.index_select(1, chosen).squeeze(1) @ before
        if first is not None:
            along = along.index_select(0, first)
        own = gain.index_select(0, chosen)
        steps[step] = torch.where(own > NOTHING, along * own.clamp(min=NOTHING).rsqrt(), 0.0)
        gain = gain - steps[step].square()
    return members(taken, count)
