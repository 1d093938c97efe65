"""Coins of every token: the law, the streams, and the loss over their bits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cacovid import ops, reference
from cacovid.errors import InvalidInputError
from cacovid.reference import bernoulli, philox
from cacovid.types import Grid


def test_thresholds_are_the_probabilities() -> None:
    z = torch.cat((torch.linspace(-30.0, 30.0, 2001), torch.tensor([-0.0, 1e-40, -1e-40])))
    t = bernoulli.keep_thresholds(z).double() / 2.0**32
    exact = torch.sigmoid(z.double())
    # exp32's polynomial, a sum and a quotient, each a few units of 2**-24, of the smaller share;
    # and the truncation to 2**-32, with nothing below one unit.
    minor = torch.minimum(exact, 1.0 - exact)
    allowed = minor * 2.0**-20 + 2.0**-32
    assert bool(((t - exact).abs() <= allowed).all())
    assert bool((t[:2001].diff() >= 0).all())
    assert bernoulli.keep_thresholds(torch.tensor([-3e38, 3e38])).tolist() == [1, 2**32 - 1]
    assert bernoulli.keep_thresholds(torch.tensor([0.0, -0.0])).tolist() == [2**31, 2**31]


def test_frequencies_of_each_token_and_of_pairs() -> None:
    """chi-square over 20,000 draws, p > 1e-4 for the sum over tokens and over pairs."""
    z, draws = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 2.5]), 20_000
    masks = ops.bernoulli_sample(z, draws, seed=11).double()
    p = torch.sigmoid(z.double())
    statistic = (((masks.mean(0) - p) ** 2) * draws / (p * (1 - p))).sum()
    assert float(statistic) < 27.86  # chi-square, 6 degrees of freedom, p = 1e-4
    joint = masks.T @ masks / draws
    pairs = torch.triu_indices(6, 6, offset=1)
    expected = (p[:, None] * p[None, :])[pairs[0], pairs[1]]
    found = joint[pairs[0], pairs[1]]
    # Pairs share tokens, so each is held to its own limit: p = 1e-4 / 15, two-sided.
    deviation = (found - expected).abs() * math.sqrt(draws) / (expected * (1 - expected)).sqrt()
    assert float(deviation.max()) < 4.51


def test_a_token_is_decided_by_its_own_draw() -> None:
    """The stream as the recipe has it, written out."""
    z = torch.randn(11)
    masks = reference.bernoulli_sample(z, 3, seed=5, offset=9)
    for g in range(3):
        for i in range(11):
            counter = [torch.tensor([v]) for v in ((i >> 2) | (4 << 24), 0, g, 9)]
            word = int(philox.philox4x32(*counter, seed=5)[i & 3])
            expected = word < int(bernoulli.keep_thresholds(z[i : i + 1]))
            assert bool(masks[g, i]) == expected


def test_packed_videos_equal_each_alone_and_raising_keeps() -> None:
    grid = Grid([(2, 3, 3), (1, 1, 1), (5, 2, 4)])
    z = torch.randn(grid.num_tokens)
    together = ops.bernoulli_sample(z, 4, grid=grid, seed=3, offset=7)
    for i, (a, b) in enumerate(pairwise(grid.host_video_offsets)):
        assert torch.equal(together[:, a:b], ops.bernoulli_sample(z[a:b], 4, seed=3, offset=7 + i))
    higher = ops.bernoulli_sample(z + 0.5, 4, grid=grid, seed=3, offset=7)
    assert bool((higher >= together).all()) and bool((higher != together).any())


def test_ragged_rollouts_are_packed() -> None:
    from cacovid.types import Prompt

    prompt = Prompt(
        torch.arange(24.0).view(12, 2), torch.arange(12), torch.arange(1, 10), torch.tensor([10]),
        Grid([(1, 3, 3)]),
    )  # fmt: skip
    masks = ops.bernoulli_sample(torch.zeros(9), 6, seed=1)
    kept = masks.sum(1).tolist()
    assert len(set(kept)) > 1 and min(kept) > 0
    packed = ops.pack_rollouts(prompt, masks)
    assert packed.prompt_offsets is not None
    assert torch.tensor(packed.prompt_offsets).diff().tolist() == [3 + k for k in kept]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_wrong_input_of_the_sampler(backend: str | None) -> None:
    for logits, rollouts, named, message in (
        (torch.tensor([1.0, math.nan]), 2, {}, "NaN or infinite"),
        (torch.tensor([math.inf]), 2, {}, "NaN or infinite"),
        (torch.ones(4, dtype=torch.int64), 2, {}, "floating point"),
        (torch.ones(2, 2), 2, {}, r"shape \(2, 2\)"),
        (torch.ones(4), 0, {}, "rollouts is 0"),
        (torch.ones(4), 2, {"grid": [(1, 1, 3)]}, r"asks for \[3\]"),
        (torch.ones(0), 2, {}, r"\[0\] tokens"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            ops.bernoulli_sample(logits, rollouts, **named, seed=1, backend=backend)


def test_loss_is_the_formula_bit_by_bit() -> None:
    torch.manual_seed(0)
    z, a = torch.randn(7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    masks = torch.rand(5, 7) < 0.4
    total = 0.0
    for g in range(5):
        logs = [
            -math.log(1 + math.exp(-float(z[i]) if masks[g, i] else float(z[i]))) for i in range(7)
        ]
        total -= float(a[g]) * sum(logs) / 7 / 5
    assert float(ops.reinforce_loss(z, masks, a)) == pytest.approx(total, rel=1e-12)


def test_gradients_of_the_loss() -> None:
    torch.manual_seed(1)
    z = (torch.randn(9, dtype=torch.float64) * 3).requires_grad_()
    masks, a = torch.rand(4, 9) < 0.5, torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.reinforce_loss(x, masks, a), z)
    assert torch.autograd.gradgradcheck(lambda x: ops.reinforce_loss(x, masks, a), z)
    (gradient,) = torch.autograd.grad(ops.reinforce_loss(z, masks, a), z)
    closed = -(a[:, None] * (masks.double() - torch.sigmoid(z.detach()))).mean(0) / 9
    torch.testing.assert_close(gradient, closed, rtol=1e-12, atol=1e-15)


def test_loss_of_certain_tokens_is_finite_and_points_the_right_way() -> None:
    z = torch.tensor([200.0, -200.0], requires_grad=True)
    masks = torch.tensor([[False, True]])
    loss = ops.reinforce_loss(z, masks, torch.tensor([1.0]))
    assert float(loss.detach()) == pytest.approx(200.0)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.tolist() == [0.5, -0.5]


def test_wrong_input_of_the_loss() -> None:
    z, masks, a = torch.zeros(3), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2)
    for arguments, message in (
        ((z, masks, a[:1]), "do not fit"),
        ((z[:2], masks, a), "do not fit"),
        ((z.long(), masks, a), "floating point"),
        ((z, masks.to("meta"), a), "one device"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            ops.reinforce_loss(*arguments)
