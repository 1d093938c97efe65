"""Intervals by bootstrap over videos, the same draws for all rows, so that differences are paired.

Questions on one video are no independent draws: what makes a video hard makes all of its questions
hard. So whole videos are drawn with replacement, and each draw's accuracy is that of its questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
#: Draws of fewer videos say next to nothing: of two that are alike, the interval is a point.
FEWEST_VIDEOS = 10


class Bootstrap:
    """Draws of videos, and what accuracies they give.

    Args:
        videos: The video of each question.
        draws: How many.
        seed: Of the draws.

    >>> drawn = Bootstrap(["a", "a", "b", "c"])
    >>> low, high = drawn.interval([1.0, 1.0, 0.0, 1.0])
    >>> 0.0 <= low <= 0.75 <= high <= 1.0
    True
    """

    def __init__(self, videos: Sequence[str], draws: int = DRAWS, seed: int = 0) -> None:
        names, self._cluster = np.unique(np.asarray(videos, dtype=object), return_inverse=True)
        count = len(names)
        #: Whether there are videos enough (`FEWEST_VIDEOS`) for what the draws say.
        self.enough = count >= FEWEST_VIDEOS
        rng = np.random.default_rng(seed)
        #: `[draws, videos]`: how often each video was drawn.
        self._times = rng.multinomial(count, np.full(count, 1.0 / count), size=draws)
        self._questions = self._times @ np.bincount(self._cluster, minlength=count)

    def means(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """`[draws]`: the mean of `values` (one per question) over each draw's questions."""
        sums = np.bincount(self._cluster, weights=np.asarray(values, dtype=np.float64))
        return (self._times @ sums) / self._questions

    def interval(
        self, values: Sequence[float] | np.ndarray, level: float = 0.95
    ) -> tuple[float, float]:
        """The middle `level` of the draws' means; holds the mean of `values` itself."""
        tail = (1.0 - level) / 2.0
        low, high = np.quantile(self.means(values), (tail, 1.0 - tail))
        middle = float(np.mean(values))
        return min(float(low), middle), max(float(high), middle)
