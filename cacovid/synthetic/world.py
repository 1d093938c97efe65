"""The words, sizes and limits of the synthetic world, in one place.

The generator is frozen before any policy or baseline is measured on it: a change here is a new
version of the task (`TASK_VERSION`), and every stored figure names the version it was made with.
"""

from __future__ import annotations

TASK_VERSION = 1

#: Pixels of a (square) frame, frames of a clip and their rate per second.
FRAME_SIZE = 144
CLIP_FRAMES = 16
CLIP_FPS = 4.0

#: The tiny model sees 6 x 6 tokens of 24 x 24 pixels per frame: 576 per clip.
CELLS = 6
CELL_SIZE = FRAME_SIZE // CELLS
CLIP_TOKENS = CLIP_FRAMES * CELLS * CELLS

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (36, 168, 60),
    "blue": (48, 76, 232),
    "yellow": (242, 224, 40),
    "orange": (246, 138, 16),
    "purple": (152, 44, 196),
    "white": (248, 248, 248),
    "cyan": (32, 214, 226),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
PATTERNS = ("plain", "striped", "dotted")
DIRECTIONS = ("left", "right", "up", "down")
PLACES = ("topleft", "topright", "bottomleft", "bottomright")
COLOUR_NAMES = tuple(COLOURS)

#: Unit steps (x, y) of each direction; y points down.
STEPS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

#: A token shows an object when at least this many of its pixels are visible in the token's cell.
EVIDENCE_PIXELS = 40
#: A question is offered only if its evidence stands on at most this share of the clip's tokens.
MAX_EVIDENCE_SHARE = 0.02
MAX_EVIDENCE_TOKENS = int(MAX_EVIDENCE_SHARE * CLIP_TOKENS)
