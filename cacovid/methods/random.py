"""`random`: tokens drawn without replacement. The control that every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.reference.philox import draw_words
from cacovid.types import PerVideo, Prompt, Scores, Selection

#: Number of this sampler in the top byte of the first counter word; 1 and 2 are the rollouts'.
OP_RANDOM = 3


class RandomMethod:
    """Keeps tokens drawn uniformly without replacement.

    Deterministic: token `i` of frame `f` gets draw `i` of Philox stream (op 3, frame `f`, rollout
    0, item 0) under the seed, and the tokens with the smallest numbers are kept (ties to the
    lowest index). The choice therefore depends on nothing but `(seed, grid of the video,
    retention)`: it is the same on every machine, and a video alone gives what it gives in a batch.
    Tokens that are kept at a lower retention are kept at a higher one too.
    """

    name = "random"
    question_aware = False
    needs: frozenset[str] = frozenset()
    #: Another seed gives other tokens.
    draws = True

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> Selection:
        """Draws the kept tokens; see `Method.__call__`."""
        grid, device = prompt.grid, prompt.embeds.device
        counts = grid.budgets(retention)
        orders: dict[tuple[int, int], Tensor] = {}
        kept = []
        for (t, h, w), begin, count in zip(
            grid.sizes, grid.host_video_offsets, counts, strict=False
        ):
            shape = (t, h * w)
            if shape not in orders:
                orders[shape] = random_order(*shape, seed, device)
            kept.append(begin + torch.sort(orders[shape][:count]).values)
        return Selection(torch.cat(kept), grid, counts)

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores | None:
        """None: chance has no opinion of a token."""
        return None

    def __repr__(self) -> str:
        return f"<method {self.name}>"


def random_order(frames: int, tokens: int, seed: int, device: torch.device) -> Tensor:
    """`[frames * tokens]` int64: all tokens of a video in the order in which they are drawn."""
    rollout = torch.zeros(1, dtype=torch.int64, device=device)
    words = draw_words(
        OP_RANDOM, torch.arange(frames, device=device), rollout, 0, tokens, seed
    ).flatten()
    return torch.sort(words, stable=True).indices
