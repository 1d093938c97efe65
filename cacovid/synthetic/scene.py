"""Scenes: which objects stand where and when. Pure geometry; `render` draws it.

Every scene is a function of `(split, seed, index)` alone, so that train, validation and test
scenes never meet, and any scene can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.synthetic import world

if TYPE_CHECKING:
    from cacovid.synthetic.questions import Question
    from cacovid.synthetic.render import Rendering

#: Each split's own stream of random numbers. "shifted" has other backgrounds and templates.
SPLITS = {"train": 11, "validation": 23, "test": 37, "shifted": 53}

#: Brief objects seen at once, and big slow ones behind them: together on over half of the tokens.
BRIEF_AT_ONCE = 7
BIG_AT_ONCE = 6
_PLACING_TRIES = 24


@dataclass(frozen=True)
class Item:
    """One object.

    Args:
        colour, shape, pattern: Names out of `world`.
        start, stop: First frame, and the frame after the last.
        radius: In pixels.
        centre: `[stop - start, 2]` float, `(x, y)` in pixels in each of its frames.
        direction: Name of the way it moves, None for the big slow ones (they wander).
    """

    colour: str
    shape: str
    pattern: str
    start: int
    stop: int
    radius: float
    centre: np.ndarray
    direction: str | None

    @property
    def brief(self) -> bool:
        """Whether questions may ask for it: the big slow ones are never asked about."""
        return self.direction is not None

    def overlaps(self, other: Item) -> bool:
        """Whether both are seen in some frame."""
        return self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class Scene:
    """A clip to be drawn, and the questions about it.

    Args:
        split, seed, index: Where it comes from.
        items: Its objects, drawn in this order (later ones in front).
        cuts: Frames at which a new shot begins (the first frame not counted).
    """

    split: str
    seed: int
    index: int
    items: tuple[Item, ...]
    cuts: tuple[int, ...]

    def generator(self, purpose: int) -> np.random.Generator:
        """The scene's random numbers for one purpose (1 drawing, 2 questions)."""
        return _generator(self.split, self.seed, self.index, purpose)

    @property
    def held_out_wording(self) -> bool:
        """Whether its questions use the wordings that no other split has."""
        return self.split == "shifted"

    @cached_property
    def rendering(self) -> Rendering:
        """Frames and visible pixels, drawn at first use."""
        from cacovid.synthetic.render import render

        return render(self)

    @cached_property
    def visible(self) -> np.ndarray:
        """`[items, F, cells * cells]` int32, as of the rendering; not drawn for its sake."""
        from cacovid.synthetic.render import count_visible

        drawn = self.__dict__.get("rendering")
        return count_visible(self) if drawn is None else drawn.visible

    def evidence(self, item: int) -> np.ndarray:
        """Tokens (flat, ascending) that show an item: at least `EVIDENCE_PIXELS` of it each."""
        return np.flatnonzero(self.visible[item].reshape(-1) >= world.EVIDENCE_PIXELS)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Every question that this scene offers, one wording each, in a fixed order."""
        from cacovid.synthetic.questions import all_questions

        return tuple(all_questions(self))

    def write(self, path: str | Path) -> Path:
        """Writes the clip as an H.264 file and returns its path."""
        from cacovid.video.write import write_video

        path = Path(path)
        write_video(path, self.rendering.frames, fps=world.CLIP_FPS)
        return path


def make_scene(split: str, seed: int, index: int) -> Scene:
    """The scene of `(split, seed, index)`.

    Raises:
        InvalidInputError: for an unknown split or a negative number.

    >>> len(make_scene("train", 0, 7).items) == len(make_scene("train", 0, 7).items)
    True
    """
    if split not in SPLITS:
        raise InvalidInputError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise InvalidInputError(f"seed {seed} and index {index} must not be negative")
    rng = _generator(split, seed, index, purpose=0)
    frames = world.CLIP_FRAMES
    cuts = (int(rng.integers(5, frames - 4)),) if rng.random() < 0.5 else ()
    names = [(c, s) for c in world.COLOUR_NAMES for s in world.SHAPES]
    # One object per (colour, shape): the pair names it within the clip.
    unused = [names[i] for i in rng.permutation(len(names))]
    shots = list(zip((0, *cuts), (*cuts, frames), strict=True))
    items: list[Item] = []
    for begin, end in shots:
        items.extend(_big(rng, unused.pop(), begin, end) for _ in range(BIG_AT_ONCE))
    brief: list[Item] = []
    for begin, end in shots:
        for lane in range(BRIEF_AT_ONCE):
            # Lanes begin at different times, so that arrivals are spread over the frames.
            frame = begin + (int(rng.integers(0, 2)) if lane else 0)
            while frame <= end - 2 and unused:
                length = int(rng.choice((2, 3, 4), p=(0.3, 0.45, 0.25)))
                if end - frame - length == 1:  # no room for another one: stay to the end
                    length = min(length + 1, 4)
                item = _brief(rng, unused[-1], frame, min(frame + length, end), brief)
                if item is not None:
                    unused.pop()
                    brief.append(item)
                    frame = item.stop
                else:
                    frame += 1
    return Scene(split, seed, index, tuple(items + brief), cuts)


def _generator(split: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(key=[SPLITS[split] << 8 | purpose, seed << 32 | index])
    )


def _big(rng: np.random.Generator, name: tuple[str, str], begin: int, end: int) -> Item:
    radius = rng.uniform(14.0, 17.0)
    margin = radius * 0.6
    velocity = rng.uniform(-1.6, 1.6, 2)
    first = rng.uniform(margin, world.FRAME_SIZE - margin, 2)
    steps = np.arange(end - begin)[:, None]
    centre = np.clip(first + steps * velocity, margin, world.FRAME_SIZE - margin)
    pattern = world.PATTERNS[rng.integers(len(world.PATTERNS))]
    return Item(name[0], name[1], pattern, begin, end, float(radius), centre, None)


def _brief(
    rng: np.random.Generator, name: tuple[str, str], start: int, stop: int, others: list[Item]
) -> Item | None:
    """A brief object that touches no other brief one, or None if there is no room."""
    pattern = world.PATTERNS[rng.integers(len(world.PATTERNS))]
    direction = world.DIRECTIONS[rng.integers(len(world.DIRECTIONS))]
    radius = float(rng.uniform(9.0, 10.5))
    low, high = radius, world.FRAME_SIZE - radius
    steps = np.arange(stop - start)[:, None]
    near = [other for other in others if other.start < stop and start < other.stop]
    for _ in range(_PLACING_TRIES):
        speed = rng.uniform(6.0, 9.0)
        velocity = np.array(world.STEPS[direction]) * speed
        centre = rng.uniform(low, high, 2) + steps * velocity
        if centre.min() < low or centre.max() > high:
            continue
        if all(_apart(centre, start, radius, other) for other in near):
            return Item(name[0], name[1], pattern, start, stop, radius, centre, direction)
    return None


def _apart(centre: np.ndarray, start: int, radius: float, other: Item) -> bool:
    begin, end = max(start, other.start), min(start + len(centre), other.stop)
    mine = centre[begin - start : end - start]
    theirs = other.centre[begin - other.start : end - other.start]
    distance = np.abs(mine - theirs).max(axis=1)
    return bool((distance > radius + other.radius).all())
