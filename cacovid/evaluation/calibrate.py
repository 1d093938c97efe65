"""The smallest share of tokens that is good enough, or the largest that is fast enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.evaluation.compare import Comparison
from cacovid.evaluation.results import median_seconds
from cacovid.evaluation.statistics import Bootstrap

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
        kept_accuracy: Share of the uncompressed accuracy.
        certainty: Share of the bootstrap's draws in which the wish for accuracy holds; None
            without one.
        first_token: Median seconds to the first token; None where nothing was timed.
        meets: Whether it meets the whole wish.
    """

    retention: float
    accuracy: float
    kept_accuracy: float
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


def calibrate(comparison: Comparison, method: str, wish: Wish) -> Calibration:
    """Chooses a share of tokens for one method.

    With `keep`: the smallest share such that it and all larger candidates keep the accuracy; a
    smaller one that does so by luck, below one that does not, is not taken. With `first_token`
    alone: the largest share that is fast enough. With both: the former, if it is fast enough.

    Args:
        comparison: The method at several retentions, and uncompressed.
        method: Its name there.
        wish: What to meet.

    Raises:
        InvalidInputError: if no candidate meets the wish, saying how far it is missed.
    """
    full, *rows = comparison.conditions
    rows = sorted((r for r in rows if r.method == method), key=lambda row: row.retention)
    if not rows:
        raise InvalidInputError(f"the comparison has no rows of method {method!r}")
    if not full.accuracy > 0.0:
        raise InvalidInputError(
            "no question is answered rightly from all tokens; there is no accuracy to keep"
        )
    drawn = Bootstrap(comparison.videos)
    marks = np.array(full.marks)
    candidates = [_candidate(row, marks, drawn, wish) for row in rows]
    if wish.keep is not None:
        lowest = _lowest_run([_sure(c, wish) for c in candidates])
        if lowest is None:
            last = candidates[-1]
            raise InvalidInputError(
                f"no share of tokens keeps {wish.keep:.4g} of the accuracy: {last.retention:g} "
                f"keeps {last.kept_accuracy:.4g}, certainty {last.certainty:.2f} of "
                f"{wish.certainty:g}. Ask for less, offer larger shares, or give more questions"
            )
        chosen = candidates[lowest]
        if not chosen.meets:
            raise InvalidInputError(
                f"share {chosen.retention:g} is the smallest that keeps the accuracy; its first "
                f"token takes {chosen.first_token:.3g} s, more than {wish.first_token:.3g} s. Ask "
                f"for less accuracy or more time"
            )
    else:
        fast = [candidate for candidate in candidates if candidate.meets]
        if not fast:
            first = candidates[0]
            raise InvalidInputError(
                f"no share of tokens is fast enough: the first token takes {first.first_token:.3g} "
                f"s at {first.retention:g}, more than {wish.first_token:.3g} s. Ask for more time, "
                f"or read fewer frames"
            )
        chosen = fast[-1]
    return Calibration(chosen.retention, full.accuracy, tuple(candidates))


def _candidate(row: Any, full: np.ndarray, drawn: Bootstrap, wish: Wish) -> Candidate:
    certainty = None
    if wish.keep is not None:
        over = drawn.means(np.array(row.marks) - wish.keep * full)
        certainty = float((over >= -_ROUNDING).mean())
    time = median_seconds(row).get("first_token")
    if wish.first_token is not None and time is None:
        raise InvalidInputError("a time is asked for, but no question was timed")
    slow = wish.first_token is not None and time is not None and time > wish.first_token
    sure = certainty is None or certainty >= wish.certainty
    accuracy, whole = row.accuracy, float(full.mean())
    return Candidate(row.retention, accuracy, accuracy / whole, certainty, time, sure and not slow)


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
