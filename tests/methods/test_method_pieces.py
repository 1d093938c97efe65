"""The pieces that methods share, against plain statements of what they compute."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch

from cacovid import reference
from cacovid.methods.cdpruner import greedy_determinant
from cacovid.methods.cosine import cosine_to_next, unit_rows
from cacovid.methods.density import density_peak_scores
from cacovid.methods.divprune import farthest_from, loneliest
from cacovid.methods.exact import exact_rows, first_copies
from cacovid.methods.fastvid import merge_into
from cacovid.methods.prunevid import cluster_means, still_positions
from cacovid.methods.segments import Segments, by_cuts, by_gain, contiguous


def rows_of(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_cosine_to_the_next_frame():
    frames = rows_of(24, 5).view(4, 6, 5)
    expected = torch.cosine_similarity(frames[:-1], frames[1:], dim=-1)
    torch.testing.assert_close(cosine_to_next(frames), expected)
    assert cosine_to_next(frames[:1]).shape == (0, 6)


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


@pytest.mark.parametrize("held", [1 << 24, 100])
def test_copies_have_equal_density_peaks(held):
    rows = 10 + rows_of(37, 895).repeat(1, 9, 1)
    scores = density_peak_scores(rows, 11, held=held)[0].view(9, 37)
    assert torch.equal(scores, scores[:1].expand(9, 37)) and bool(torch.isfinite(scores).all())
    assert len(scores[0].unique()) > 30


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


def test_farthest_first_from_a_row_of_zeros():
    rows = unit_rows(rows_of(40, 6).abs())
    rows[[0, 7, 21]] = 0.0
    distance = torch.cdist(rows.double(), rows.double()).square()
    for k in (1, 2, 9, 30):
        chosen = [0]
        while len(chosen) < k:
            nearest = distance[:, chosen].amin(dim=1)
            nearest[chosen] = -1.0
            chosen.append(int(nearest.argmax()))
        assert farthest_from(rows, torch.tensor([0]), k).tolist() == sorted(chosen)


def test_first_copies():
    rows = rows_of(50, 33)
    rows = rows[torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(1))]
    rows[100:200] = rows[100:200].sign()  # bits of few kinds
    rows[::7] = 0.0
    rows[14] = -0.0
    same = (rows[:, None] == rows[None]).all(dim=-1)
    expected = same.to(torch.int8).argmax(dim=1)
    assert torch.equal(first_copies(rows), expected) and len(expected.unique()) < 160
    assert first_copies(rows[:1]).tolist() == [0]


def test_the_loneliest_row_in_blocks_of_any_height():
    rows = unit_rows(rows_of(63, 5))
    cosine = (rows.double() @ rows.double().T).fill_diagonal_(-2.0)
    for held in (1, 200, 1 << 20):
        assert int(loneliest(rows, held)) == int(cosine.amax(dim=1).argmin())


def test_of_rows_that_have_copies_the_first_is_the_loneliest():
    rows = unit_rows(rows_of(37, 895).repeat(2, 1))
    for held in (1, 5000, 1 << 20):
        assert int(loneliest(rows, held)) == 0


def test_runs_become_segments_by_hand():
    assert contiguous([3]) == [0, 1]
    # 0 keeps frames 0-1 and 1 keeps 4-6. 2 joins the left, which has 2 frames to 1; the stray 0 has
    # 3 on either side then and joins the left; 3 has only a left one.
    assert contiguous([0, 0, 2, 0, 1, 1, 1, 3]) == [0, 4, 8]
    # No label has a run of two: all join, from the left.
    assert contiguous([0, 1, 0, 1]) == [0, 4]
    # Equal neighbours: the left one takes it.
    assert contiguous([0, 0, 2, 1, 1]) == [0, 3, 5]


def most_saved(still):
    """The best of all ways to cut the frames, tried one by one."""
    frames = len(still) + 1
    best = 0
    for cuts in itertools.product([False, True], repeat=frames - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), frames]
        best = max(best, saved_by(still, bounds))
    return best


def saved_by(still, bounds):
    saved = 0
    for begin, end in itertools.pairwise(bounds):
        positions = still[begin : end - 1].all(dim=0).sum() if end - begin > 1 else 0
        saved += (end - begin - 1) * int(positions)
    return saved


@pytest.mark.parametrize("seed", range(8))
def test_segments_save_as_much_as_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    frames = 1 + seed
    still = torch.rand(frames - 1, 6, generator=generator) < 0.75
    segments, throughout = by_gain(still)
    bounds = [0, *(end for _, end in segments.spans)]
    assert bounds[-1] == frames and saved_by(still, bounds) == most_saved(still)
    for number, (begin, end) in enumerate(segments.spans):
        expected = still[begin : end - 1].all(dim=0) if end - begin > 1 else torch.zeros(6).bool()
        assert throughout[number].tolist() == expected.tolist()


def test_cuts_at_the_lowest_cosines_and_below():
    cosines = torch.tensor([0.95, 0.99, 0.2, 0.97, 0.99, 0.98])
    assert by_cuts(cosines, 2, 0.5).spans == [(0, 1), (1, 3), (3, 7)]
    assert by_cuts(cosines, 0, 0.975).spans == [(0, 1), (1, 3), (3, 4), (4, 7)]
    segments = by_cuts(cosines, 1, 0.0)
    assert segments.of_frame.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert segments.is_first.tolist() == [True, False, False, True, False, False, False]
    values = torch.arange(7.0)
    assert segments.means(values).tolist() == [1.0, 4.5]
    assert by_cuts(cosines[:0], 7, 0.9).spans == [(0, 1)]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 3e18])
def test_exact_rows_are_near_and_their_products_exact(scale):
    rows = scale * rows_of(2 * 7, 65).view(2, 7, 65)
    rows[1] *= 1e-3  # a step of its own
    members = torch.ones(2, 7, dtype=torch.bool)
    members[0, 0] = False
    rows[0, 0] *= 1e3  # no member
    exact = exact_rows(rows, members)
    longest = rows[members].view(13, 65)[6:].norm(dim=1).max()
    assert float((exact[1] - rows[1]).abs().max()) <= 2.0**-25 * float(longest)
    product = exact @ exact.transpose(1, 2)
    for some, own in ((exact[0, 1:], product[0, 1:, 1:]), (exact[1], product[1])):
        for i in range(0, len(some), 2):
            a, b = ([Fraction(v) for v in some[j].tolist()] for j in (i, -1))
            assert Fraction(float(own[i, -1])) == sum(x * y for x, y in zip(a, b, strict=True))
    assert torch.equal(exact_rows(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5).double())


def test_the_greedy_determinant_takes_the_largest_at_each_step():
    rows = unit_rows(rows_of(12, 8))
    relevance = torch.rand(12, generator=torch.Generator().manual_seed(1))
    kernel = (relevance[:, None] * rows).double()
    kernel = kernel @ kernel.T
    chosen: list[int] = []
    for k in range(1, 7):
        sets = {j: [*chosen, j] for j in range(12) if j not in chosen}
        chosen.append(max(sets, key=lambda j: float(kernel[sets[j]][:, sets[j]].det())))
        assert greedy_determinant(rows, relevance, k).tolist() == sorted(chosen)


def test_merging_into_anchors_against_a_loop():
    rows = rows_of(30, 4)
    segment = torch.arange(30) // 10
    anchor, kept = torch.tensor([2, 5, 13]), [2, 5, 13, 20, 21]
    merged = torch.ones(30, dtype=torch.bool)
    merged[kept] = False
    members = {int(a): [] for a in anchor}
    for i in range(20):
        if i not in kept:
            inside = [a for a in members if segment[a] == segment[i]]
            cosines = [float(torch.cosine_similarity(rows[i], rows[a], dim=0)) for a in inside]
            members[inside[cosines.index(max(cosines))]].append(i)
    expected = []
    for a, others in members.items():
        w = max(1 / (len(others) + 1), 0.6)
        mean = rows[others].mean(dim=0) if others else torch.zeros(4)
        expected.append(w * rows[a] + (1 - w) * mean)
    for held in (1, 50, 1 << 20):
        got = merge_into(rows, anchor, merged, segment, held)
        torch.testing.assert_close(got, torch.stack(expected))


def test_merging_goes_to_the_first_of_equal_anchors():
    rows = rows_of(1, 896).repeat(40, 1) + rows_of(40, 896, seed=1)
    rows[20:] = rows[:20]
    anchor = torch.tensor([0, 1, 2, 20, 21, 22])  # three, and their copies
    merged = torch.ones(40, dtype=torch.bool).index_fill_(0, anchor, False)
    segment = torch.zeros(40, dtype=torch.int64)
    for held in (1 << 20, 50):
        got = merge_into(rows, anchor, merged, segment, held)
        assert torch.equal(got[3:], rows[20:23])  # 34 others merged, none of them here


def test_cluster_means_against_a_loop():
    rows = rows_of(2 * 8, 3).view(2, 8, 3)
    inside = torch.ones(2, 8, dtype=torch.bool)
    inside[0, 6:] = False
    peaks = torch.zeros_like(inside)
    peaks[0, [1, 4]] = True
    peaks[1, 7] = True
    got = cluster_means(rows, inside, peaks)
    torch.testing.assert_close(got[1, 7], rows[1].mean(dim=0))
    near = torch.cdist(rows[0, :6], rows[0, [1, 4]]).argmin(dim=1)
    torch.testing.assert_close(got[0, 1], rows[0, :6][near == 0].mean(dim=0))
    torch.testing.assert_close(got[0, 4], rows[0, :6][near == 1].mean(dim=0))
    torch.testing.assert_close(cluster_means(rows, inside, peaks, held=1), got)


def test_still_positions_are_the_mean_of_all_pairs():
    frames = rows_of(5 * 40, 2).view(5, 40, 2)
    frames[:4, :20] = frames[0, :20] + 0.4 * frames[:4, :20]
    segments = Segments([0, 4, 5], frames.device)
    unit = unit_rows(frames[:4])
    pairs = [(unit[i] * unit[j]).sum(-1) for i, j in itertools.combinations(range(4), 2)]
    got = still_positions(frames, segments)
    assert got[0].tolist() == (torch.stack(pairs).mean(dim=0) > 0.8).tolist()
    assert bool(got[0].any()) and not bool(got.all()) and not bool(got[1].any())
