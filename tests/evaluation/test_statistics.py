"""Intervals against what is known of them."""

import numpy as np
import pytest

from cacovid.evaluation.plots import front
from cacovid.evaluation.statistics import Bootstrap


def test_one_question_a_video_gives_the_binomial_interval():
    # 200 independent marks of 0.5: standard error sqrt(0.25 / 200) = 0.0354. The quantiles of 2,000
    # draws are known to about 0.06 standard errors; 0.2 of one is more than three times that.
    marks = np.arange(200) % 2
    low, high = Bootstrap([str(n) for n in range(200)]).interval(marks)
    error = np.sqrt(0.25 / 200)
    assert (low, high) == pytest.approx((0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=0.2 * error)


def test_questions_of_one_video_count_as_one():
    # Eight times the same mark on a video tell no more than once.
    videos = [str(n // 8) for n in range(1600)]
    marks = np.repeat(np.arange(200) % 2, 8)
    once = Bootstrap([str(n) for n in range(200)]).interval(np.arange(200) % 2)
    low, high = Bootstrap(videos).interval(marks)
    assert high - low == pytest.approx(once[1] - once[0], rel=0.15)


def test_differences_are_paired():
    videos = [str(n) for n in range(50)]
    drawn = Bootstrap(videos)
    full = np.arange(50) % 3 == 0
    np.testing.assert_allclose(
        drawn.means(full - 0.25) - drawn.means(full), -0.25, rtol=0, atol=1e-12
    )
    assert drawn.interval(full * 0.0) == (0.0, 0.0)


def test_an_interval_holds_its_mean_however_few_videos():
    for marks in ([1.0], [0.0, 1.0, 1.0]):
        low, high = Bootstrap([str(n % 2) for n in range(len(marks))]).interval(marks)
        assert 0.0 <= low <= np.mean(marks) <= high <= 1.0


def test_the_front_of_equal_points():
    assert front([(1.0, 0.5), (1.0, 0.7), (2.0, 0.7)]) == [(1.0, 0.7)]
