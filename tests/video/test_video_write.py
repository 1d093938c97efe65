"""Writing video."""

from __future__ import annotations

import numpy as np
import pytest

from cacovid.errors import InvalidInputError
from cacovid.video import FrameSampling, probe, read_frames, write_video


def test_round_trip(tmp_path, numbers, numbered):
    frames = numbered(16, 144, 144)
    path = write_video(tmp_path / "clip.mp4", frames, fps=4)
    read = read_frames(path, FrameSampling(16, 4.0), timeout=None)
    assert read.metadata.duration == 4.0
    assert numbers(read.frames) == list(range(16))
    assert np.abs(read.frames.astype(int) - frames).mean() < 4


def test_same_frames_same_file(tmp_path, numbered):
    one, two = (write_video(tmp_path / f"{n}.mp4", numbered(8), fps=4) for n in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_ntsc_rate(tmp_path, numbered):
    path = write_video(tmp_path / "ntsc.mp4", numbered(30), fps=30000 / 1001)
    assert probe(path, timeout=None).fps == pytest.approx(30000 / 1001, rel=1e-9)


@pytest.mark.parametrize(
    ("frames", "options", "reason"),
    [
        (np.zeros((2, 8, 8), np.uint8), {}, r"\[F, H, W, 3\]"),
        (np.zeros((2, 8, 8, 3), np.float32), {}, "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "at least one"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"fps": 0}, "fps"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"rotation": 45}, "rotation"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"timestamps": [1.0, 1.0]}, "ascending"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"codec": "no-such-codec"}, "codec"),
    ],
)
def test_refusals_leave_nothing(tmp_path, frames, options, reason):
    with pytest.raises(InvalidInputError, match=reason):
        write_video(tmp_path / "clip.mp4", frames, **{"fps": 4, **options})
    assert not list(tmp_path.iterdir())
