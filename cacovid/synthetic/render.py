"""Drawing a scene: anti-aliased shapes with patterns over a moving textured background."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from cacovid.synthetic import world
from cacovid.synthetic.scene import Item, Scene

_NOISE = 3.0
_DARK = 0.42  # brightness of stripes and dots against the object's colour


@dataclass(frozen=True)
class Rendering:
    """What is seen.

    Args:
        frames: `[F, H, W, 3]` uint8.
        visible: `[items, F, cells * cells]` int32: pixels of each item visible in each token.
    """

    frames: np.ndarray
    visible: np.ndarray


def render(scene: Scene) -> Rendering:
    """Draws all frames of a scene (H = W = `world.FRAME_SIZE`)."""
    rng = scene.generator(purpose=1)
    size = world.FRAME_SIZE
    frames = _backgrounds(rng, scene)
    owner = np.full((world.CLIP_FRAMES, size, size), -1, dtype=np.int16)
    for number, item in enumerate(scene.items):
        for frame in range(item.start, item.stop):
            _draw(frames[frame], owner[frame], item, frame, number)
    frames += rng.normal(0.0, _NOISE, frames.shape).astype(np.float32)
    pixels = np.clip(np.rint(frames), 0, 255).astype(np.uint8)
    return Rendering(pixels, _count(owner, len(scene.items)))


def count_visible(scene: Scene) -> np.ndarray:
    """`visible` of a scene's rendering, without drawing: an eighth of the time."""
    size = world.FRAME_SIZE
    owner = np.full((world.CLIP_FRAMES, size, size), -1, dtype=np.int16)
    for number, item in enumerate(scene.items):
        for frame in range(item.start, item.stop):
            window, x, y = _window(item, frame)
            distance = signed_distance(item.shape, x, y, item.radius)
            owner[frame][window][_cover(distance) > 0.5] = number
    return _count(owner, len(scene.items))


def _count(owner: np.ndarray, items: int) -> np.ndarray:
    frames, cells, edge = world.CLIP_FRAMES, world.CELLS, world.CELL_SIZE
    cell = np.arange(world.FRAME_SIZE) // edge
    token = np.arange(frames)[:, None, None] * cells * cells + cell[:, None] * cells + cell
    seen = owner >= 0
    key = owner[seen].astype(np.int64) * world.CLIP_TOKENS + token[seen]
    counts = np.bincount(key, minlength=items * world.CLIP_TOKENS)
    return counts.reshape(items, frames, cells * cells).astype(np.int32)


def _backgrounds(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    size, frames = world.FRAME_SIZE, world.CLIP_FRAMES
    out = np.empty((frames, size, size, 3), dtype=np.float32)
    starts = (0, *scene.cuts, frames)
    for begin, end in itertools.pairwise(starts):
        span = size + 4 * frames
        texture = _texture(rng, span, shifted=scene.split == "shifted")
        speed = rng.uniform(-2.0, 2.0, 2)
        origin = np.where(speed < 0, 4 * frames - 2, 1).astype(float)
        for frame in range(begin, end):
            x, y = (origin + speed * (frame - begin)).astype(int)
            out[frame] = texture[y : y + size, x : x + size]
    return out


def _texture(rng: np.random.Generator, span: int, shifted: bool) -> np.ndarray:
    """Muted blobs; in the shifted set a lattice of soft bars, another hue and brightness."""
    tint = rng.uniform(70, 130) + rng.uniform(-22, 22, 3)
    if shifted:
        tint = rng.uniform(50, 150) + rng.uniform(-30, 30, 3)
        period, angle = rng.uniform(14, 40), rng.uniform(0, np.pi)
        y, x = np.mgrid[0:span, 0:span]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        return (tint + 18.0 * wave[..., None]).astype(np.float32)
    field = np.zeros((span, span), dtype=np.float32)
    for scale, weight in ((8, 10.0), (20, 18.0)):
        coarse = rng.normal(0.0, weight, (span // scale + 3, span // scale + 3))
        field += _enlarge(coarse, scale)[:span, :span]
    return (tint + field[..., None]).astype(np.float32)


def _enlarge(coarse: np.ndarray, scale: int) -> np.ndarray:
    """Bilinear enlargement."""
    ramp = (np.arange(scale) + 0.5) / scale
    rows = coarse[:-1, None] * (1 - ramp)[:, None] + coarse[1:, None] * ramp[:, None]
    rows = rows.reshape(-1, coarse.shape[1])
    columns = rows[:, :-1, None] * (1 - ramp) + rows[:, 1:, None] * ramp
    return columns.reshape(rows.shape[0], -1)


def _draw(canvas: np.ndarray, owner: np.ndarray, item: Item, frame: int, number: int) -> None:
    window, x, y = _window(item, frame)
    distance = signed_distance(item.shape, x, y, item.radius)
    cover = _cover(distance)
    colour = np.array(world.COLOURS[item.colour], dtype=np.float32)
    shade = _shade(item.pattern, x, y, item.radius)
    patch = canvas[window]
    # A dark rim separates an object from a background or neighbour of like colour.
    rim = np.clip(1.5 - distance, 0.0, 1.0).astype(np.float32)
    patch *= 1.0 - 0.75 * rim[..., None]
    patch *= 1.0 - cover[..., None]
    patch += cover[..., None] * (shade[..., None] * colour)
    owner[window][cover > 0.5] = number


def _window(item: Item, frame: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The part of a frame that an item reaches, and its pixels' distances from the centre."""
    size = world.FRAME_SIZE
    cx, cy = item.centre[frame - item.start]
    reach = item.radius + 2
    x0, x1 = max(0, int(cx - reach)), min(size, int(cx + reach) + 1)
    y0, y1 = max(0, int(cy - reach)), min(size, int(cy + reach) + 1)
    x = (np.arange(x0, x1) + 0.5 - cx)[None, :]
    y = (np.arange(y0, y1) + 0.5 - cy)[:, None]
    return (slice(y0, y1), slice(x0, x1)), x, y


def _cover(distance: np.ndarray) -> np.ndarray:
    """How much of each pixel lies inside a shape."""
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def _shade(pattern: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    ones = np.ones(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    if pattern == "striped":
        return np.where(np.mod(y, 6.0) < 3.0, _DARK, 1.0).astype(np.float32) * ones
    if pattern == "dotted":
        near = np.hypot(np.mod(x, 6.5) - 3.25, np.mod(y, 6.5) - 3.25) < 2.0
        return np.where(near, _DARK, 1.0).astype(np.float32)
    return ones


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Distance in pixels to a shape of radius `r` at the origin, negative inside (approximate)."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.84 * r
    if shape == "triangle":
        return np.maximum(0.88 * np.abs(x) - 0.47 * (y + 0.92 * r), y - 0.78 * r)
    if shape == "cross":
        arm, half = 0.95 * r, 0.34 * r
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - arm, ay - half), np.maximum(ay - arm, ax - half))
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * r) - 0.25 * r
    if shape == "star":
        angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5) - np.pi / 5
        edge = 0.46 + (1.08 - 0.46) * (np.abs(angle) / (np.pi / 5)) ** 1.3
        return (np.hypot(x, y) - edge * r) * 0.7
    if shape == "heart":
        u, v = np.abs(x) / r, -(y + 0.1 * r) / r
        lobe = np.hypot(u - 0.44, v - 0.3) - 0.5
        wedge = 0.72 * u - 0.72 * v * 1.0 - 0.62
        return np.minimum(lobe, np.maximum(np.maximum(wedge, v - 0.35), -v - 0.95)) * r
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - 0.98 * r, 0.72 * r - np.hypot(x - 0.52 * r, y))
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(world.SHAPES)}")
