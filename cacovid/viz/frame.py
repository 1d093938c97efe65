"""One frame with its tokens: dropped ones dimmed under the heat map, kept ones bright, outlined."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cacovid.viz import colours

#: Brightness of the grey picture under a dropped token, and the share of its heat colour on top.
_DIM = 0.50
_DIM_PLAIN = 0.30
_HEAT_SHARE = 0.55
_GRID_SHARE = 0.22
#: Smaller tokens have no rim inside their outline: it would hide them whole.
_LEAST_RIMMED = 8
#: Kept neighbours smaller than this many pixels have no line between them: it would hide them.
_LEAST_JOINED = 16


def paint_frame(
    frame: np.ndarray,
    size: tuple[int, int],
    kept: np.ndarray,
    heat: np.ndarray | None,
) -> Image.Image:
    """Draws the overlay of one frame.

    Kept tokens show the frame as it is, inside a white outline and a rim in the colour of their
    scores; where tokens are large enough, each has a rim of its own. Dropped ones are grey and
    dark, tinted in the colour of their score.

    Args:
        frame: `[H, W, 3]` uint8.
        size: Width and height of the result in pixels.
        kept: `[h, w]` bool, the kept tokens.
        heat: `[h, w]` in [0, 1], the scores; None for a method that has none.
    """
    picture = np.array(resized(frame, size), dtype=np.float32)
    rows, columns = _cells(kept.shape[0], size[1]), _cells(kept.shape[1], size[0])
    token_pixels = min(size[1] / kept.shape[0], size[0] / kept.shape[1])
    line = int(np.clip(token_pixels * 0.07, 1, 3))
    rim = int(np.clip(token_pixels * 0.08, 1, 4)) if token_pixels >= _LEAST_RIMMED else 0
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    inside = kept[rows][:, columns]
    outline = inside & ~_shrunk(inside, line)
    if heat is None:
        dropped = np.repeat(grey[..., None], 3, axis=-1) * _DIM_PLAIN
    else:
        colour = colours.viridis(heat)[rows][:, columns]
        dropped = grey[..., None] * (_DIM * (1 - _HEAT_SHARE)) + colour * _HEAT_SHARE
        # Full width inside the outline; thin between two kept tokens, to hide little of them.
        thin = (rim + 1) // 2 if token_pixels >= _LEAST_JOINED else 0
        joints = _near_border(rows, thin)[:, None] | _near_border(columns, thin)[None, :]
        rims = inside & (joints | ~_shrunk(inside, line + rim))
        picture[rims] = colour[rims]
    borders = _borders(rows)[:, None] | _borders(columns)[None, :]
    dropped[borders] *= 1 - _GRID_SHARE
    out = np.where(inside[..., None], picture, dropped)
    out[_grown(inside, 1) & ~inside] = colours.HALO
    out[outline] = colours.OUTLINE
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def resized(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """`frame` `[H, W, 3]` uint8 at `size` (width, height)."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    larger = size[0] >= image.width
    return image.resize(size, Image.Resampling.BICUBIC if larger else Image.Resampling.LANCZOS)


def _cells(count: int, pixels: int) -> np.ndarray:
    # The model resizes a frame to its own square: a token's place is its share of the picture,
    # whether the pixels divide evenly or not.
    return np.arange(pixels) * count // pixels


def _borders(cells: np.ndarray) -> np.ndarray:
    return np.diff(cells, prepend=cells[0]) != 0


def _near_border(cells: np.ndarray, pixels: int) -> np.ndarray:
    """Whether a pixel is among the first or last `pixels` of its cell."""
    begins = np.diff(cells, prepend=-1) != 0
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(cells))
    cell, place = np.cumsum(begins) - 1, np.arange(len(cells))
    return (place - starts[cell] < pixels) | (ends[cell] - place <= pixels)


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    out = np.pad(mask, steps)
    for axis in (0, 1):
        out = np.logical_or.reduce([np.roll(out, s, axis) for s in range(-steps, steps + 1)])
    return out[steps:-steps, steps:-steps]


def _shrunk(mask: np.ndarray, steps: int) -> np.ndarray:
    # Outside the picture counts as dropped, so that an outline is closed at the picture's edge.
    outside = ~np.pad(mask, steps)
    return ~_grown(outside, steps)[steps:-steps, steps:-steps]
