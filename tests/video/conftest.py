"""Videos in which every frame carries its number as a bar code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cacovid.video import write_video

BITS = 8


def _numbered(count: int, height: int = 96, width: int = 128) -> np.ndarray:
    """`[count, height, width, 3]`: colour ramps below a bar code of the frame's number."""
    frames = np.empty((count, height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for number, frame in enumerate(frames):
        frame[..., 0] = columns * 200 // width + 20
        frame[..., 1] = rows * 200 // height + 20
        frame[..., 2] = number * 7 % 200
        for bit in range(BITS):
            part = slice(width * bit // BITS, width * (bit + 1) // BITS)
            frame[: height // 3, part] = 255 if number >> bit & 1 else 0
    return frames


def _numbers(frames: np.ndarray) -> list[int]:
    """What the bar codes say."""
    _, height, width, _ = frames.shape
    found = []
    for frame in frames:
        middles = [frame[height // 6, width * bit // BITS + width // 16] for bit in range(BITS)]
        found.append(sum(int(pixel.mean() > 128) << bit for bit, pixel in enumerate(middles)))
    return found


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a numbered video once per session: `make_video("name.mp4", count=60, ...)`."""
    folder = tmp_path_factory.mktemp("videos")

    def make(
        name: str, count: int = 60, height: int = 96, width: int = 128, **options: Any
    ) -> Path:
        path = folder / name
        if not path.exists():
            options = {"fps": 25, "keyframe_interval": 12, **options}
            write_video(path, _numbered(count, height, width), **options)
        return path

    return make


@pytest.fixture(scope="session")
def numbered() -> Callable[..., np.ndarray]:
    """Makes frames `[count, height, width, 3]` that carry their numbers."""
    return _numbered


@pytest.fixture(scope="session")
def numbers() -> Callable[[np.ndarray], list[int]]:
    """Reads the numbers of such frames."""
    return _numbers
