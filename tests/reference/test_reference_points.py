"""Density peaks and farthest points: worked examples and a plain statement of the formula."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.reference import density_peaks, farthest_point


def plain_density_peaks(rows, k, neighbours=4):
    """ALGORITHMS 1.3 with loops."""
    x = [[float(v) for v in row] for row in rows]
    count, width = len(x), len(x[0])
    d = [[math.dist(a, b) / math.sqrt(width) for b in x] for a in x]
    rho = []
    for row in d:
        near = sorted(v * v for v in row)[: min(neighbours, count)]
        rho.append(math.exp(-sum(near) / len(near)))
    top = max(max(row) for row in d)
    value = []
    for i in range(count):
        denser = [d[i][j] for j in range(count) if rho[j] > rho[i]]
        value.append(rho[i] * (min(denser) if denser else top))
    return sorted(sorted(range(count), key=lambda i: (-value[i], i))[:k])


@pytest.mark.parametrize("seed", range(5))
def test_density_peaks_equals_the_plain_statement(seed):
    rows = torch.randn(23, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for k in (1, 4, 23):
        assert density_peaks(rows, k).tolist() == plain_density_peaks(rows, k)


def exact_density_peaks(rows, k, neighbours):
    """ALGORITHMS 1.3 by logarithms of sixty digits, which no scale makes vanish."""
    with localcontext() as context:
        context.prec = 60
        x = [[Decimal(v) for v in row] for row in rows.tolist()]
        d = [[sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for b in x] for a in x]
        width, count = len(x[0]), len(x)
        spread = [sum(sorted(row)[: min(neighbours, count)]) for row in d]
        value = []
        for i in range(count):
            denser = [d[i][j] for j in range(count) if spread[j] < spread[i]]
            apart = min(denser) if denser else max(max(row) for row in d)
            log = (apart / width).ln() / 2 if apart else Decimal("-Infinity")
            value.append(log - spread[i] / (min(neighbours, count) * width))
    return sorted(sorted(range(count), key=lambda i: (-value[i], i))[:k])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 50.0, 1e3, 1e7, 1e9, 1e15])
@pytest.mark.parametrize("neighbours", [2, 4])
def test_densities_below_what_float64_holds_still_rank(scale, neighbours):
    rows = torch.randn(24, 16, generator=torch.Generator().manual_seed(3)) * scale
    rows[20:22] = rows[3]  # copies, of separation 0 or alike
    for k in (1, 5, 15):
        expected = exact_density_peaks(rows, k, neighbours)
        assert expected != list(range(k))
        assert density_peaks(rows, k, neighbours).tolist() == expected


def test_density_peaks_takes_one_of_each_cluster():
    rows = torch.tensor([[0.0], [0.1], [0.21], [0.35], [9.0], [9.1], [9.2], [9.33]])
    first, second = density_peaks(rows, 2).tolist()
    assert first < 4 <= second


def test_farthest_points_by_hand():
    # The mean is 3.75: 10 is farthest from it, 0 from 10, then 4 (4 from 0) before 1.
    rows = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
    assert [farthest_point(rows, k).tolist() for k in (1, 2, 3)] == [[3], [0, 3], [0, 2, 3]]


@pytest.mark.parametrize("choose", [density_peaks, farthest_point])
def test_equal_rows_give_the_lowest_indices(choose):
    assert choose(torch.ones(5, 3), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("choose", [density_peaks, farthest_point])
def test_bad_input_is_named(choose):
    with pytest.raises(InvalidInputError, match="k is 4; expected 1 to 3"):
        choose(torch.ones(3, 2), 4)
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        choose(torch.full((3, 2), torch.nan), 1)
    with pytest.raises(InvalidInputError, match=r"expected \[M, D\]"):
        choose(torch.ones(3), 1)
