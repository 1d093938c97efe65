"""`oracle`: told which tokens show what is asked. A bound, not a method."""

from __future__ import annotations

import torch

from cacovid.methods.base import required_extra
from cacovid.methods.random import random_order
from cacovid.types import PerVideo, Prompt, Scores, Selection

#: `[N]` bool: the tokens that show what the question asks about.
EVIDENCE = "evidence"


class OracleMethod:
    """Keeps tokens that show what the question asks about, then others, both at random.

    It reads `prompt.extras["evidence"]`, the truth, which the embedded task knows
    (`cacovid eval --embedded`) and no adapter can give. Drawn as `random` draws.
    """

    name = "oracle"
    question_aware = True
    needs = frozenset({EVIDENCE})
    #: Another seed gives other tokens.
    draws = True

    def __call__(self, prompt: Prompt, retention: PerVideo, *, seed: int = 0) -> Selection:
        """Chooses the tokens; see `Method.__call__`."""
        grid = prompt.grid
        counts = grid.budgets(retention)
        evidence = required_extra(prompt, EVIDENCE, self.name).bool()
        kept = []
        for index, (t, h, w) in enumerate(grid.sizes):
            begin, end = grid.host_video_offsets[index : index + 2]
            order = random_order(t, h * w, seed, prompt.embeds.device)
            first = torch.sort((~evidence[begin:end][order]).to(torch.uint8), stable=True).indices
            kept.append(begin + torch.sort(order[first][: counts[index]]).values)
        return Selection(torch.cat(kept), grid, counts)

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores | None:
        """1 for a token that shows what is asked, else 0."""
        return Scores(required_extra(prompt, EVIDENCE, self.name).to(torch.float32))

    def __repr__(self) -> str:
        return f"<method {self.name}>"
