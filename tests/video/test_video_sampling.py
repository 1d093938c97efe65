"""The arithmetic of sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacovid.errors import InvalidInputError
from cacovid.video import FrameSampling, sample_indices


@pytest.mark.parametrize(
    ("frames", "duration", "sampling", "expected"),
    [
        (100, 4.0, FrameSampling(32, 1.0), [0, 33, 66, 99]),
        (100, 3.999, FrameSampling(32, 1.0), [0, 50, 99]),
        (3, 100.0, FrameSampling(32, 1.0), [0, 1, 2]),
        (50, 0.4, FrameSampling(32, 1.0), [0]),
        (16, 4.0, FrameSampling(16, 4.0), list(range(16))),
        (11, 0.1, FrameSampling(4, 1.0, "eval"), [0, 3, 6, 10]),
        (2, 0.1, FrameSampling(4, 1.0, "eval"), [0, 1]),
    ],
)
def test_known(frames, duration, sampling, expected):
    assert sample_indices(frames, duration, sampling).tolist() == expected


@given(
    st.integers(1, 5000),
    st.floats(0, 1000),
    st.integers(1, 64),
    st.floats(0.1, 60),
    st.sampled_from(["train", "eval"]),
)
def test_properties(frames, duration, most, fps, rule):
    indices = sample_indices(frames, duration, FrameSampling(most, fps, rule))
    assert indices.dtype == np.int64
    assert 1 <= len(indices) <= min(most, frames)
    assert (np.diff(indices) > 0).all()
    assert indices[0] == 0
    assert indices[-1] == frames - 1 or len(indices) == 1
    if rule == "train":
        assert len(indices) <= max(1, math.floor(duration * fps + 1e-6))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_frames": 0}, {"max_frames": 8.0}, {"max_frames": None}, {"fps": 0.0},
        {"fps": math.nan}, {"fps": None}, {"fps": "1"}, {"rule": "best"},
    ],
)  # fmt: skip
def test_refusals(bad):
    with pytest.raises(InvalidInputError, match=next(iter(bad))):
        FrameSampling(**bad)


def test_what_is_no_sampling_and_no_path():
    from cacovid.video import read_frames

    with pytest.raises(InvalidInputError, match="sampling is 8; expected a FrameSampling"):
        read_frames("clip.mp4", 8)
    for path in (None, b"clip.mp4", 7):
        with pytest.raises(InvalidInputError, match="expected the path of a file"):
            read_frames(path)
