"""Each method on an example that is worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cacovid import methods


def line(values, make, size=None, question=((1.0,),)):
    """A prompt of one video whose tokens are numbers or short rows."""
    rows = torch.tensor(values)
    if rows.dim() == 1:
        rows = rows[:, None]
    size = size or (1, 1, len(rows))
    return make.pack([rows.view(*size, -1)], [torch.tensor(question).expand(1, rows.shape[-1])])


def turned(degrees, lengths):
    """Rows of two numbers at angles to the first axis."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    rows = torch.stack((radians.cos(), radians.sin()), dim=1)
    return (rows * torch.tensor(lengths, dtype=torch.float64)[:, None]).float().tolist()


def test_fewer_frames(make):
    prompt = make.pack([torch.zeros(5, 2, 2, 3)], [torch.zeros(1, 3)])
    # 7 tokens of 5 frames of 4: the first frame, and of the last one positions round(j * 3 / 2).
    assert methods.get("fewer_frames")(prompt, 0.35).keep.tolist() == [0, 1, 2, 3, 16, 18, 19]
    # Frames round(j * 4 / 2): 0, 2, 4.
    assert methods.get("fewer_frames")(prompt, 0.6).keep.tolist() == [*range(4), *range(8, 12),
                                                                     *range(16, 20)]  # fmt: skip


def test_evs(make):
    a, b = [1.0, 0.0], [0.0, 2.0]
    # The second place turns by a right angle in frame 1, the first place in frame 2.
    prompt = line([a, b, a, a, b, a], make, (3, 1, 2))
    method = methods.get("evs")
    scores = method.scores(prompt).token
    assert scores.tolist() == [math.inf, math.inf, 0.0, 1.0, 1.0, 0.0]
    # The first frame, then the earlier of the equal changes.
    assert method(prompt, 0.5).keep.tolist() == [0, 1, 3]
    assert method(prompt, 0.67).keep.tolist() == [0, 1, 3, 4]


def test_evs_spends_less_than_a_frame_on_even_places_of_the_first(make):
    prompt = line([[1.0]] * 18, make, (2, 3, 3))
    # round(j * 8 / 2) of the first frame.
    assert methods.get("evs")(prompt, 3 / 18).keep.tolist() == [0, 4, 8]


def test_divprune(make):
    rows = turned([0, 10, 90, 180, 185], [1, 5, 2, 1, 3])
    prompt = line(rows, make)
    # Nearest others are at 10, 10, 80, 5 and 5 degrees: 90 comes first. From it 90, 80, 90 and 95:
    # then 185, then 0 (90 from 90), then 10 (10 from 0; 180 is 5 from 185).
    method = methods.get("divprune")
    assert method(prompt, 0.2).keep.tolist() == [2]
    assert method(prompt, 0.4).keep.tolist() == [2, 4]
    assert method(prompt, 0.6).keep.tolist() == [0, 2, 4]
    assert method(prompt, 0.8).keep.tolist() == [0, 1, 2, 4]


def test_dpc_knn(make):
    prompt = line([0.0, 1.0, 2.0, 10.0, 11.0, 30.0], make)
    method = methods.get("dpc_knn:3")
    # Smallest three squared distances, the own 0 among them: 0+1+4, 0+1+1, 0+1+4, 0+1+64, 0+1+81,
    # 0+361+400. Nothing is denser than 1, so that it gets the largest distance, 30.
    spread = [5, 2, 5, 65, 82, 761]
    apart = [1, 30, 1, 8, 1, 19]
    expected = [math.log(d) - s / 3 for d, s in zip(apart, spread, strict=True)]
    assert method.scores(prompt).token.tolist() == pytest.approx(expected, rel=1e-6)
    assert method(prompt, 2 / 6).keep.tolist() == [0, 1]
    assert method(prompt, 4 / 6).keep.tolist() == [0, 1, 2, 3]
