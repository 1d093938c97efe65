"""The pieces that methods share, against plain statements of what they compute."""

from __future__ import annotations

import pytest
import torch

from cacovid import reference
from cacovid.methods.cosine import cosine_to_next_frame, unit_rows
from cacovid.methods.density import density_peak_scores
from cacovid.methods.divprune import farthest_from, loneliest


def rows_of(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_cosine_to_the_next_frame():
    frames = rows_of(24, 5).view(4, 6, 5)
    expected = torch.cosine_similarity(frames[:-1], frames[1:], dim=-1)
    torch.testing.assert_close(cosine_to_next_frame(frames), expected)
    assert cosine_to_next_frame(frames[:1]).shape == (0, 6)


@pytest.mark.parametrize("count", [1, 2, 7, 63, 196])
@pytest.mark.parametrize("neighbours", [1, 4, 7])
def test_density_peaks_rank_as_the_reference_chooses(count, neighbours):
    rows = rows_of(count, 6, seed=count)
    order = density_peak_scores(rows[None], neighbours)[0].argsort(descending=True, stable=True)
    for k in sorted({1, (count + 1) // 2, count}):
        expected = reference.density_peaks(rows, k, neighbours)
        assert order[:k].sort().values.tolist() == expected.tolist()


def test_density_peaks_in_blocks_and_in_sets_are_those_of_each_set_alone():
    sets = rows_of(3 * 20, 6).view(3, 20, 6)
    whole = density_peak_scores(sets)
    for held in (1, 50, 401, 900):
        torch.testing.assert_close(density_peak_scores(sets, held=held), whole)
    for number in range(3):
        torch.testing.assert_close(density_peak_scores(sets[number, None])[0], whole[number])


def test_density_peaks_of_some_members_are_those_of_the_members_alone():
    sets = rows_of(2 * 9, 4).view(2, 9, 4)
    members = torch.zeros(2, 9, dtype=torch.bool)
    members[0, [1, 4, 5, 8]] = True
    members[1, 3] = True
    scores = density_peak_scores(sets, 7, members)
    alone = density_peak_scores(sets[0, members[0]][None], 7)[0]
    torch.testing.assert_close(scores[0, members[0]], alone)
    assert bool((scores[~members] == -torch.inf).all())


def plain_max_min(rows, first, count):
    distance = 1.0 - rows.double() @ rows.double().T
    chosen = [first]
    while len(chosen) < count:
        nearest = distance[:, chosen].amin(dim=1)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


@pytest.mark.parametrize(("count", "width"), [(2, 3), (7, 2), (63, 5), (196, 16)])
def test_farthest_first_from_a_given_row(count, width):
    rows = unit_rows(rows_of(count, width, seed=width))
    for first in (0, count - 1, count // 2):
        for k in {1, 2, count // 2 or 1, count}:
            got = farthest_from(rows, torch.tensor([first]), k)
            assert got.tolist() == plain_max_min(rows, first, k)


def test_the_loneliest_row_in_blocks_of_any_height():
    rows = unit_rows(rows_of(63, 5))
    cosine = (rows.double() @ rows.double().T).fill_diagonal_(-2.0)
    for held in (1, 200, 1 << 20):
        assert int(loneliest(rows, held)) == int(cosine.amax(dim=1).argmin())
