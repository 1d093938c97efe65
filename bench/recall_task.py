"""Associative recall in videos: a task that a model of two layers learns in a minute on one core.

A clip has three pictures of 3 x 3 cells, each picture shown for two frames, so that every cell is
one video token of a Qwen model with patches of four pixels. Four of the 27 cells hold a pair of
colours, left and right; the others are grey. Four of eight colours stand on the left once, any
may stand on the right: "beside red" has one answer, and one token shows it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cacovid.video import write_video

#: What stands on the left and on the right of a cell.
COLOURS = {
    "red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "yellow": (230, 230, 20),
    "pink": (230, 20, 230), "cyan": (20, 220, 230), "white": (250, 250, 250), "black": (5, 5, 5),
}  # fmt: skip
NAMES = tuple(COLOURS)
PICTURES, SIDE, CELL, HELD = 3, 3, 8, 2
#: Pairs in a clip, and so questions on it.
SHOWN = 4
TOKENS = PICTURES * SIDE**2
FPS = 4.0
_GREY = 128
_RGB = np.array(list(COLOURS.values()), dtype=np.uint8)


#: Cells by their numbers: the pair `(left, right)` is `8 * left + right`, greys follow.
PAIRS = len(NAMES) ** 2
GREYS = 8


@dataclass(frozen=True)
class Clips:
    """Clips by their cells, and what they show.

    Args:
        cells: `[B, 27]`: the number of every cell, picture by picture, row by row.
        asked: `[B, 4]`: the colours (their numbers) on the left, in a random order.
        answers: `[B, 4]`: the colours beside them.
    """

    cells: np.ndarray
    asked: np.ndarray
    answers: np.ndarray


def draw_clips(count: int, rng: np.random.Generator) -> Clips:
    """Draws `count` clips."""

    def some_of(number: int) -> np.ndarray:
        return rng.permuted(np.tile(np.arange(number), (count, 1)), axis=1)[:, :SHOWN]

    places, asked = some_of(TOKENS), some_of(len(NAMES))
    answers = rng.integers(0, len(NAMES), (count, SHOWN))
    cells = PAIRS + rng.integers(0, GREYS, (count, TOKENS))
    np.put_along_axis(cells, places, len(NAMES) * asked + answers, axis=1)
    return Clips(cells, asked, answers)


def render(cells: np.ndarray, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
    """Frames of cells.

    Args:
        cells: Numbers `[9 * P]` of the cells of `P` pictures.
        rng: Of the greys and the noise.
        noise: Standard deviation of noise on every pixel, of 255.

    Returns:
        `[2 * P, 24, 24, 3]` uint8.
    """
    pixels = np.full((len(cells), CELL, CELL, 3), _GREY, dtype=np.float64)
    pixels += rng.normal(0.0, 20.0, (len(cells), 1, 1, 3))
    paired = cells < PAIRS
    left, right = np.divmod(cells[paired], len(NAMES))
    pixels[paired, :, : CELL // 2] = _RGB[left][:, None, None]
    pixels[paired, :, CELL // 2 :] = _RGB[right][:, None, None]
    pixels += rng.normal(0.0, noise, pixels.shape)
    grid = pixels.reshape(-1, SIDE, SIDE, CELL, CELL, 3).swapaxes(2, 3)
    pictures = grid.reshape(-1, SIDE * CELL, SIDE * CELL, 3)
    return pictures.clip(0, 255).round().astype(np.uint8).repeat(HELD, axis=0)


def question(colour: int) -> str:
    """What is asked of a colour, by its number."""
    return f"beside {NAMES[colour]}"


def write_questions(folder: Path, clips: int, seed: int) -> Path:
    """Writes clips as files and all questions on them as `cacovid train` reads them.

    Args:
        folder: Where to; made if it is not there.
        clips: How many.
        seed: Of the set.

    Returns:
        The list, `questions.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 29])
    drawn = draw_clips(clips, rng)
    rows = []
    for number, cells in enumerate(drawn.cells):
        name = f"{number:04d}.mp4"
        # Colour as sharp as the picture: a cell's halves are four pixels wide.
        write_video(folder / name, render(cells, rng), FPS, crf=4, pixel_format="yuv444p")
        rows += [
            {
                "problem_id": f"{number}/{NAMES[asked]}",
                "problem": question(asked),
                "problem_type": "exact",
                "solution": NAMES[answer],
                "path": name,
            }
            for asked, answer in zip(drawn.asked[number], drawn.answers[number], strict=True)
        ]
    path = folder / "questions.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path
