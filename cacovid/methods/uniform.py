"""`uniform`: evenly spaced tokens. The other control that every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.types import PerVideo, Prompt, Scores, Selection


class UniformMethod:
    """Keeps `round(j * (N - 1) / (k - 1))`, `j = 0 ... k-1`: the `k` even positions of a video.

    Quotients are rounded half to even as rational numbers, in integers, so that no grid is large
    enough for machines to differ; `k = 1` keeps token 0. No two positions coincide, because for
    `k < N` they lie more than 1 apart before rounding.
    """

    name = "uniform"
    question_aware = False
    needs: frozenset[str] = frozenset()

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> Selection:
        """Chooses the even positions; see `Method.__call__`. The seed changes nothing."""
        grid, device = prompt.grid, prompt.embeds.device
        counts = grid.budgets(retention)
        kept = [
            begin + even_positions(total, count, device)
            for total, begin, count in zip(
                grid.tokens_per_video, grid.host_video_offsets, counts, strict=False
            )
        ]
        return Selection(torch.cat(kept), grid, counts)

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores | None:
        """None: the positions are chosen, no token is judged."""
        return None

    def __repr__(self) -> str:
        return f"<method {self.name}>"


def even_positions(total: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """`round_half_even(j * (total - 1) / (count - 1))` for `j = 0 ... count-1`, exactly.

    Args:
        total: Tokens to choose from.
        count: Tokens to choose, `1 <= count <= total`.
        device: Where the result is wanted.

    Returns:
        `[count]` int64, strictly ascending.

    >>> even_positions(10, 4)
    tensor([0, 3, 6, 9])
    """
    if count == 1:
        return torch.zeros(1, dtype=torch.int64, device=device)
    steps = count - 1
    product = torch.arange(count, dtype=torch.int64, device=device) * (total - 1)
    quotient = torch.div(product, steps, rounding_mode="floor")
    twice_rest = 2 * (product - quotient * steps)
    half_to_even = (twice_rest == steps) & (quotient % 2 == 1)
    return quotient + ((twice_rest > steps) | half_to_even).to(torch.int64)
