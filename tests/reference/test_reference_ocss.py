"""The sampler's recipe: known answers, its law, and independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.reference import fixed_point, philox
from cacovid.reference.ocss import ocss_plan, ocss_sample
from cacovid.types import Grid


def test_philox_known_answers() -> None:
    zero = torch.zeros((), dtype=torch.int64)
    ones = torch.full((), 0xFFFFFFFF)
    words = philox.philox4x32(zero, zero, zero, zero, 0)
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = philox.philox4x32(ones, ones, ones, ones, 2**64 - 1)
    assert [int(w) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_exp_and_log_are_accurate_to_float32() -> None:
    d = -torch.linspace(0, 80, 40001)
    exact = torch.exp(d.double())
    assert ((fixed_point.exp_value(d).double() - exact) / exact).abs().max() < 4e-7
    assert int(fixed_point.mass(torch.zeros(1))) == 1 << 22
    words = torch.cat([torch.arange(0, 1 << 32, 99991), torch.tensor([0, (1 << 32) - 1])])
    u = ((words >> 9) * 2 + 1).double() / 2**24
    got = fixed_point.neg_log(words).double()
    assert ((got + u.log()) / u.log()).abs().max() < 4e-7
    assert got.min() > 0


def test_sort_key_orders_and_joins_the_zeros() -> None:
    values = torch.tensor([-torch.inf, -3.0, -1e-40, -0.0, 0.0, 1e-40, 2.0, torch.inf])
    keys = fixed_point.sort_key(values)
    assert keys[3] == keys[4]
    assert (keys.diff() >= 0).all() and (keys.diff() == 0).sum() == 1
    assert fixed_point.rank(torch.tensor([0.0, -0.0, 1.0, 1.0])).tolist() == [2, 3, 0, 1]


def test_first_rollout_is_greedy_and_rows_ascend() -> None:
    torch.manual_seed(0)
    grid = Grid([(3, 4, 5), (2, 3, 3)])
    scores = torch.randn(grid.num_tokens)
    indices = ocss_sample(scores, grid, [0.1, 0.4], 9, seed=3)
    assert indices.dtype == torch.int32 and indices.shape == (9, 3 * 2 + 2 * 4)
    assert (indices.diff(dim=1) > 0).all()
    for frame in range(grid.num_frames):
        begin, end = grid.host_frame_offsets[frame : frame + 2]
        k = 2 if frame < 3 else 4
        best = set((scores[begin:end].topk(k).indices + begin).tolist())
        row = [i for i in indices[0].tolist() if begin <= i < end]
        assert set(row) == best
        counts = ((indices >= begin) & (indices < end)).sum(1)
        assert (counts == k).all()


def test_a_video_alone_equals_the_same_video_in_a_batch() -> None:
    torch.manual_seed(1)
    grid = Grid([(2, 5, 5), (3, 7, 2), (1, 3, 3)])
    scores = torch.randn(grid.num_tokens) * 3
    ratios = [0.08, 0.3, 0.5]
    together = ocss_sample(scores, grid, ratios, 7, seed=2**63 + 5, offset=11)
    column = 0
    for i in range(3):
        begin, end = grid.host_video_offsets[i : i + 2]
        alone = ocss_sample(
            scores[begin:end], grid.video(i), ratios[i], 7, seed=2**63 + 5, offset=11 + i
        )
        width = alone.shape[1]
        assert torch.equal(together[:, column : column + width], alone + begin)
        column += width


def test_a_subspace_with_too_few_members_is_topped_up_in_rank_order() -> None:
    # 5 sub-spaces of 2 members, and k = 5
    plan = ocss_plan(Grid([(1, 2, 5)]), 0.5, subspace_factor=0.4)[0]
    assert (plan.subspaces, plan.keep) == (5, 5)
    scores = -torch.arange(10.0)
    rows = ocss_sample(scores, [(1, 2, 5)], 0.5, 200, subspace_factor=0.4, seed=1)
    starts = {tuple(row) for row in rows.tolist()}
    assert starts == {tuple(range(b, b + 5)) for b in (0, 2, 4, 5)}


def test_the_cap_in_integers_follows_the_law() -> None:
    torch.manual_seed(2)
    p = torch.softmax(torch.randn(20, 25) * 4, 1)
    masses = (p * 2**22).round().long() + 1
    out = fixed_point.clip_max_fixed(
        masses, fixed_point.fixed_cap(0.1), fixed_point.fixed_floor(25)
    )
    share = out.double() / out.sum(1, keepdim=True)
    assert (share <= 0.1 + 1e-6).all() and (share > 0.9 / 625).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InvalidInputError, match="token_scores"):
        ocss_sample(torch.tensor([0.0, bad, 1.0, 2.0]), [(1, 2, 2)], 0.5, 2, seed=0)


def test_a_ratio_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="ratio is 0"):
        ocss_sample(torch.zeros(4), [(1, 2, 2)], 0.0, 2, seed=0)
