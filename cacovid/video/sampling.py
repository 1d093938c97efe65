"""Which frames of a video are read: pure arithmetic on counts and seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from cacovid.errors import InvalidInputError

RULES = ("train", "eval")
#: Added before the floor, so that 4 s at 29.97 Hz measured as 3.9999999 s still count as 4.
_EPSILON = 1e-6


@dataclass(frozen=True)
class FrameSampling:
    """How frames are chosen.

    Args:
        max_frames: Most frames that are read, at least 1.
        fps: Most frames per second of video; used by rule "train" alone.
        rule: "train": evenly spaced, limited by `max_frames` and by `fps`. "eval": always
            `max_frames` evenly spaced positions, rounded down, without the `fps` limit, as the
            published evaluation did; a video with fewer frames gives each of them once.

    Raises:
        InvalidInputError: for another rule, or numbers that are none or out of range.
    """

    max_frames: int = 32
    fps: float = 1.0
    rule: str = "train"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InvalidInputError(
                f"rule is {self.rule!r}; expected one of {', '.join(map(repr, RULES))}"
            )
        if isinstance(self.max_frames, bool) or not isinstance(self.max_frames, Integral):
            raise InvalidInputError(f"max_frames is {self.max_frames!r}; expected an integer")
        if self.max_frames < 1:
            raise InvalidInputError(f"max_frames is {self.max_frames}; expected at least 1")
        if isinstance(self.fps, bool) or not isinstance(self.fps, Real):
            raise InvalidInputError(f"fps is {self.fps!r}; expected a positive number")
        if not 0 < self.fps < math.inf:
            raise InvalidInputError(f"fps is {self.fps}; expected a positive number")


def sample_indices(frames: int, duration: float, sampling: FrameSampling) -> np.ndarray:
    """The frames to read out of a video of `frames` frames and `duration` seconds.

    With `n` frames, rule "train" takes `min(max_frames, n, ⌊duration·fps⌋)`, at least 1, at
    `round(linspace(0, n−1, count))`; rule "eval" takes `⌊linspace(0, n−1, min(max_frames, n))⌋`.

    Args:
        frames: Frames of the video, at least 1.
        duration: Seconds.
        sampling: The rule.

    Returns:
        `[F]` int64, strictly ascending.

    Raises:
        InvalidInputError: for a video without frames or a negative duration.

    >>> sample_indices(100, 4.0, FrameSampling(max_frames=32, fps=1.0)).tolist()
    [0, 33, 66, 99]
    >>> sample_indices(10, 4.0, FrameSampling(max_frames=4, rule="eval")).tolist()
    [0, 3, 6, 9]
    """
    if frames < 1 or not 0 <= duration < math.inf:
        raise InvalidInputError(
            f"{frames} frames in {duration} s; expected at least one frame and a finite duration"
        )
    count = min(sampling.max_frames, frames)
    if sampling.rule == "train":
        count = max(1, min(count, math.floor(duration * sampling.fps + _EPSILON)))
        return np.linspace(0, frames - 1, count).round().astype(np.int64)
    return np.floor(np.linspace(0, frames - 1, count)).astype(np.int64)
