"""The compiled form of `cpo_loss`: value and gradient within the error budget, wrong input."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import ops, reference
from cacovid.backends import available
from cacovid.errors import InvalidInputError
from cacovid.reference.cpo_loss import part_and_gradient
from cacovid.testing.budgets import assert_within_budget, cast

_CPU = available()["cpu"]
pytestmark = pytest.mark.skipif(not _CPU.available, reason=_CPU.reason)


def _inputs(seed: int, spread: float = 1.0) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Some ratios inside the clip and some outside it, on both sides."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    n, t = rng.choice((1, 7, 63, 196, 1000, 1025, 2048)), rng.choice((1, 7, 33))
    groups = [rng.choice((1, 2, 23, 50)) for _ in range(2)]
    scores = [torch.randn(c, generator=generator) * spread for c in (n, t)]
    old = [s + 0.4 * torch.randn(len(s), generator=generator) for s in scores]
    masks = [
        torch.rand(g, c, generator=generator) < rng.choice((0.02, 0.5))
        for g, c in zip(groups, (n, t), strict=True)
    ]
    rewards = [torch.randint(0, 2, (g,), generator=generator).float() for g in groups]
    named = {"clip": rng.choice(((0.2, 0.28), (0.1, 0.5))), "kl_weight": rng.choice((0.0, 0.3))}
    return (*scores, *old, *masks, *rewards), named


def _run(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], named: dict[str, Any]
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs[:2]]
    loss = function(*leaves, *inputs[2:], **named)
    return [*loss, *torch.autograd.grad(loss.token * 2.0 + loss.frame * 3.0, leaves)]


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("seed", range(16))
def test_error_budget_of_loss_and_gradient(seed: int, spread: float) -> None:
    inputs, named = _inputs(seed, spread)
    got = _run(ops.cpo_loss, inputs, {**named, "backend": "cpu"})
    plain = _run(reference.cpo_loss, inputs, named)
    exact = _run(reference.cpo_loss, cast(inputs, torch.float64), named)
    for ours, theirs, true in zip(got, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        assert_within_budget(ours, theirs, true)


@pytest.mark.parametrize("seed", range(4))
def test_closed_gradient_of_the_reference(seed: int) -> None:
    """What serves where the schema is called without the compiled part."""
    inputs, named = _inputs(seed)
    inputs = cast(inputs, torch.float64)
    _, token, frame, token_grad, frame_grad = _run(reference.cpo_loss, inputs, named)
    for value, gradient, chosen, factor, balanced in (
        (token, token_grad, inputs[0::2], 2.0, True),
        (frame, frame_grad, inputs[1::2], 3.0, False),
    ):
        loss, slope = part_and_gradient(*chosen, named["clip"], named["kl_weight"], balanced)
        torch.testing.assert_close(loss, value.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(factor * slope, gradient, rtol=1e-10, atol=1e-12)


def test_unequal_inputs_are_used_as_they_are() -> None:
    """Integer masks, rewards of another dtype, strided scores, float64 scores, autocast."""
    inputs, named = _inputs(3)
    expected = ops.cpo_loss(*inputs, **named)
    strided = torch.stack([inputs[0], inputs[0]], dim=1)[:, 0]
    changed = (
        strided,
        *inputs[1:4],
        *(m.int() for m in inputs[4:6]),
        *(r.int() for r in inputs[6:]),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.cpo_loss(*changed, **named, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    wide = cast(inputs, torch.float64)
    assert ops.cpo_loss(*wide, **named).total.dtype == torch.float64
    with pytest.raises(InvalidInputError, match="takes scores in float32"):
        ops.cpo_loss(*wide, **named, backend="cpu")


def test_shapes_and_devices_that_do_not_fit() -> None:
    inputs, named = _inputs(5)
    with pytest.raises(InvalidInputError, match=r"token scores .* do not fit"):
        ops.cpo_loss(*inputs[:6], inputs[6][:-1], inputs[7], **named)
    with pytest.raises(InvalidInputError, match="move them to one device"):
        ops.cpo_loss(*inputs[:4], inputs[4].to("meta"), *inputs[5:], **named)


@pytest.mark.parametrize("backend", ["cpu", "reference", None])
def test_what_gives_no_loss_is_named(backend: str | None) -> None:
    inputs, named = _inputs(5)
    with pytest.raises(InvalidInputError, match=r"clip is \(2, -1\)"):
        ops.cpo_loss(*inputs, **{**named, "clip": (2, -1)}, backend=backend)
    none = (*inputs[:5], inputs[5][:0], inputs[6], inputs[7][:0])
    with pytest.raises(InvalidInputError, match=r"frame masks are .*0 rollouts"):
        ops.cpo_loss(*none, **named, backend=backend)


def test_fullgraph() -> None:
    inputs, named = _inputs(2)

    def step(token: Tensor, frame: Tensor) -> Tensor:
        return ops.cpo_loss(token, frame, *inputs[2:], **named).total

    leaves = [t.clone().requires_grad_() for t in inputs[:2]]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, expected = compiled(*leaves), step(*leaves)
    assert torch.equal(got, expected)
    for a, b in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        assert torch.equal(a, b)


def test_gradient_only_where_it_is_asked_for() -> None:
    inputs, named = _inputs(1)
    assert not ops.cpo_loss(*inputs, **named).total.requires_grad
    leaf = inputs[0].clone().requires_grad_()
    loss = ops.cpo_loss(leaf, *inputs[1:], **named)
    loss.total.backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
