"""`dpc_knn`: density peaks over all tokens of a video (Du et al., KBS 99, 2016)."""

from __future__ import annotations

import torch

from cacovid.errors import InvalidInputError
from cacovid.methods.base import ScoredMethod
from cacovid.methods.density import density_peak_scores
from cacovid.methods.video_tokens import each_video
from cacovid.types import Prompt, Scores


class DpcKnnMethod(ScoredMethod):
    """Keeps the tokens that are dense and far from denser ones: the largest `rho * delta`.

    Args:
        neighbours: Distances that make the density, the token's own among them.

    Raises:
        InvalidInputError: for fewer than 1 neighbour.
    """

    question_aware = False

    def __init__(self, neighbours: int | str = 4) -> None:
        try:
            self.neighbours = int(neighbours)
        except ValueError:
            self.neighbours = 0
        if self.neighbours < 1:
            raise InvalidInputError(
                f"neighbours of method 'dpc_knn' are {neighbours!r}; expected a number of at "
                f"least 1, as in 'dpc_knn:4'"
            )
        self.name = "dpc_knn" if self.neighbours == 4 else f"dpc_knn:{self.neighbours}"

    def scores(self, prompt: Prompt, *, seed: int = 0) -> Scores:
        """`log(rho * delta)`, `[N]` float64; see `ScoredMethod.scores`."""
        parts = [
            density_peak_scores(video.rows[None], self.neighbours)[0]
            for video in each_video(prompt)
        ]
        return Scores(torch.cat(parts))
