"""The smallest share of tokens that is good enough, or the largest that is fast enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.evaluation.compare import Comparison
from cacovid.evaluation.results import median_seconds
from cacovid.evaluation.statistics import FEWEST_VIDEOS, Bootstrap

#: Rounding of a mean of marks is no loss of accuracy.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Wish:
    """What a share of tokens has to meet.

    Args:
        keep: Share of the uncompressed accuracy to keep, in (0, 1]; None: not asked for.
        first_token: Greatest median time to the first token, seconds; None: not asked for.
        certainty: Share of the bootstrap's draws in which `keep` has to hold.
    """

    keep: float | None = None
    first_token: float | None = None
    certainty: float = 0.9

    def __post_init__(self) -> None:
        if self.keep is None and self.first_token is None:
            raise InvalidInputError("nothing is asked for; give a share to keep, or a time")
        if self.keep is not None and not 0.0 < self.keep <= 1.0:
            raise InvalidInputError(f"keep is {self.keep}; expected a share in (0, 1], e.g. 0.99")
        if self.first_token is not None and not self.first_token > 0.0:
            raise InvalidInputError(f"first_token is {self.first_token}; expected seconds above 0")
        if not 0.0 < self.certainty <= 1.0:
            raise InvalidInputError(f"certainty is {self.certainty}; expected a share in (0, 1]")


@dataclass(frozen=True)
class Candidate:
    """One share of tokens, and what was measured of it.

    Args:
        retention: The share.
        accuracy: Mean mark.
        kept_accuracy: Share of the uncompressed accuracy; None where that is 0.
        certainty: Share of the bootstrap's draws in which the wish for accuracy holds; None
            without one, or from fewer than 10 videos, whose draws say nothing.
        first_token: Median seconds to the first token; None where nothing was timed.
        meets: Whether it meets the whole wish.
    """

    retention: float
    accuracy: float
    kept_accuracy: float | None
    certainty: float | None
    first_token: float | None
    meets: bool


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and from what.

    Args:
        retention: The chosen share.
        accuracy: Of all tokens.
        candidates: By share, ascending.
    """

    retention: float
    accuracy: float
    candidates: tuple[Candidate, ...]


class WishNotMetError(InvalidInputError):
    """No share of tokens meets the wish.

    Args:
        message: How far it is missed.
        accuracy: Of all tokens.
        candidates: What was measured, by share, ascending.
    """

    def __init__(self, message: str, accuracy: float, candidates: Sequence[Candidate]) -> None:
        super().__init__(message)
        self.accuracy = accuracy
        self.candidates = tuple(candidates)


def calibrate(comparison: Comparison, method: str, wish: Wish) -> Calibration:
    """Chooses a share of tokens for one method.

    With `keep`: the smallest share such that it and all larger candidates keep the accuracy; a
    smaller one that does so by luck, below one that does not, is not taken. With `first_token`
    alone: the largest share that is fast enough. With both: the former, if it is fast enough.

    `keep` needs questions on 10 videos at least (`cacovid.evaluation.statistics.FEWEST_VIDEOS`),
    as the intervals of `cacovid eval` do: one video that goes well is no certainty.

    Args:
        comparison: The method at several retentions, and uncompressed.
        method: Its name there.
        wish: What to meet.

    Raises:
        WishNotMetError: if no candidate meets the wish, saying how far it is missed; or with
            `keep`, if there are fewer than 10 videos.
        InvalidInputError: if there is nothing to choose from.
    """
    full, *rows = comparison.conditions
    rows = sorted((r for r in rows if r.method == method), key=lambda row: row.retention)
    if not rows:
        raise InvalidInputError(f"the comparison has no rows of method {method!r}")
    drawn = Bootstrap(comparison.videos)
    marks = np.array(full.marks)
    candidates = [_candidate(row, marks, drawn, wish) for row in rows]
    chosen = too_few(len(set(comparison.videos)), wish) or _choose(candidates, wish)
    if isinstance(chosen, str):
        raise WishNotMetError(chosen, full.accuracy, candidates)
    return Calibration(chosen.retention, full.accuracy, tuple(candidates))


def too_few(videos: int, wish: Wish) -> str | None:
    """What to tell when a wish cannot be judged from so many videos, else None."""
    if wish.keep is None or videos >= FEWEST_VIDEOS:
        return None
    return (
        f"the questions are on {videos} video{'s'[: videos != 1]}, too few to say how surely a "
        f"share of tokens keeps the accuracy; expected at least {FEWEST_VIDEOS}. Give questions on "
        f"more videos; `cacovid eval` measures any number, and chooses nothing"
    )


def _choose(candidates: Sequence[Candidate], wish: Wish) -> Candidate | str:
    """The candidate to take, or how far the wish is missed."""
    if wish.keep is None:
        fast = [candidate for candidate in candidates if candidate.meets]
        if fast:
            return fast[-1]
        first = candidates[0]
        return (
            f"no share of tokens is fast enough: the first token takes {first.first_token:.3g} s "
            f"at {first.retention:g}, more than {wish.first_token:.3g} s. Ask for more time, or "
            f"read fewer frames"
        )
    last = candidates[-1]
    if last.kept_accuracy is None:
        return "no question is answered rightly from all tokens; there is no accuracy to keep"
    lowest = _lowest_run([_sure(c, wish) for c in candidates])
    if lowest is None:
        return (
            f"no share of tokens keeps {wish.keep:.4g} of the accuracy: {last.retention:g} keeps "
            f"{last.kept_accuracy:.4g}, certainty {last.certainty:.2f} of {wish.certainty:g}. Ask "
            f"for less, offer larger shares, or give more questions"
        )
    chosen = candidates[lowest]
    if chosen.meets:
        return chosen
    return (
        f"share {chosen.retention:g} is the smallest that keeps the accuracy; its first token "
        f"takes {chosen.first_token:.3g} s, more than {wish.first_token:.3g} s. Ask for less "
        f"accuracy or more time"
    )


def _candidate(row: Any, full: np.ndarray, drawn: Bootstrap, wish: Wish) -> Candidate:
    accuracy, whole = row.accuracy, float(full.mean())
    certainty = None
    if wish.keep is not None and drawn.enough:
        over = drawn.means(np.array(row.marks) - wish.keep * full)
        certainty = float((over >= -_ROUNDING).mean()) if whole > 0.0 else 0.0
    time = median_seconds(row).get("first_token")
    if wish.first_token is not None and time is None:
        raise InvalidInputError("a time is asked for, but no question was timed")
    slow = wish.first_token is not None and time is not None and time > wish.first_token
    sure = wish.keep is None or (certainty is not None and certainty >= wish.certainty)
    kept = accuracy / whole if whole > 0.0 else None
    return Candidate(row.retention, accuracy, kept, certainty, time, sure and not slow)


def _sure(candidate: Candidate, wish: Wish) -> bool:
    return candidate.certainty is not None and candidate.certainty >= wish.certainty


def _lowest_run(good: Sequence[bool]) -> int | None:
    """Where the run of True at the end begins; None without one.

    >>> _lowest_run([True, False, True, True])
    2
    """
    begin = len(good)
    while begin > 0 and good[begin - 1]:
        begin -= 1
    return begin if begin < len(good) else None
