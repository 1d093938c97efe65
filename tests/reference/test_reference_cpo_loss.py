"""The loss against the golden vectors, its gradient, and what it must not do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cacovid.errors import InvalidInputError
from cacovid.reference import cpo_loss

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VECTORS = load_file(GOLDEN / "loss_shared.safetensors")
SETTINGS = json.loads((GOLDEN / "shared.json").read_text())["loss"]


@pytest.mark.parametrize("case", SETTINGS, ids=lambda c: str(c["i"]))
def test_golden_losses_and_gradients(case):
    v = {k.split("/")[1]: x for k, x in VECTORS.items() if k.startswith(f"{case['i']}/")}
    logits = [v[n].clone().requires_grad_() for n in ("token_logits", "frame_logits")]
    now = [x[:, 1] - x[:, 0] for x in logits]
    old = [x[:, 1] - x[:, 0] for x in (v["old_token_logits"], v["old_frame_logits"])]
    loss = cpo_loss(
        *now, *old, v["token_mask"], v["frame_mask"], v["token_reward"], v["frame_reward"],
        clip=(case["clip_low"], case["clip_high"]), kl_weight=case["kl_weight"],
    )
    loss.total.backward()
    for got, name in (
        (loss.total, "loss"), (loss.token, "token_loss"), (loss.frame, "frame_loss"),
        (logits[0].grad, "grad_token_logits"), (logits[1].grad, "grad_frame_logits"),
    ):
        torch.testing.assert_close(got.reshape(v[name].shape), v[name], rtol=1e-5, atol=1e-5)


def arguments(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    scores = [torch.randn(n, generator=g, dtype=dtype) for n in (12, 3, 12, 3)]
    masks = [torch.rand(5, n, generator=g) < 0.4 for n in (12, 3)]
    return [*scores, *masks, *(torch.rand(5, generator=g, dtype=dtype) for _ in range(2))]


def test_gradients_in_float64():
    token, frame, *rest = arguments()
    token.requires_grad_()
    frame.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: cpo_loss(a, b, *rest, kl_weight=0.1).total, (token, frame)
    )


def test_equal_rewards_teach_nothing():
    token, frame, *rest = arguments()
    token.requires_grad_()
    rest[-2:] = [torch.ones(5, dtype=torch.float64)] * 2
    cpo_loss(token, frame, *rest).total.backward()
    assert token.grad.abs().max() == 0


def test_scores_in_half_precision_leave_rewards_as_they_are():
    """At the first update all ratios are 1 and advantages have the mean 0: so has the loss."""
    token, frame, _, _, masks, frame_masks, *_ = arguments(torch.bfloat16)
    rewards = torch.tensor([-7.01, -7.02, -7.05, -7.0, -7.03])  # log-probabilities
    leaf = token.clone().requires_grad_()
    half = cpo_loss(leaf, frame, token, frame, masks, frame_masks, rewards, rewards)
    half.token.backward()
    wide = [t.float() for t in (token, frame)]
    own = wide[0].clone().requires_grad_()
    single = cpo_loss(own, wide[1], *wide, masks, frame_masks, rewards, rewards)
    single.token.backward()
    assert half.total.dtype == torch.float32 and abs(float(half.total.detach())) < 1e-4
    assert all(torch.equal(a, b) for a, b in zip(half, single, strict=True))
    assert leaf.grad.dtype == torch.bfloat16 and bool(own.grad.any())
    assert torch.equal(leaf.grad, own.grad.bfloat16())


def test_shapes_that_do_not_fit_are_named():
    bad = arguments()
    bad[6] = bad[6][:4]
    with pytest.raises(InvalidInputError, match=r"token scores \(12,\).*rewards \(4,\)"):
        cpo_loss(*bad)


def test_what_gives_no_loss_is_named():
    for clip in ((2.0, -1.0), (0.2, -0.1), (1.5, 0.2), (float("nan"), 0.2), (0.2,)):
        with pytest.raises(InvalidInputError, match=r"clip is .*how far the probability ratio"):
            cpo_loss(*arguments(), clip=clip)
    for part, name in ((0, "token"), (1, "frame")):
        none = arguments()
        none[4 + part], none[6 + part] = none[4 + part][:0], none[6 + part][:0]
        with pytest.raises(InvalidInputError, match=rf"{name} masks are .*0 rollouts.*G >= 1"):
            cpo_loss(*none)


def test_without_frames_the_tokens_are_all():
    token, frame, old, old_frame, masks, frame_masks, rewards, frame_rewards = arguments()
    token.requires_grad_()
    loss = cpo_loss(
        token, frame[:0], old, old_frame[:0], masks, frame_masks[:0, :0], rewards, frame_rewards[:0]
    )
    whole = cpo_loss(
        token, frame, old, old_frame, masks, frame_masks, rewards, frame_rewards
    )
    assert float(loss.frame) == 0.0 and loss.total == loss.token == whole.token
    assert torch.autograd.grad(loss.total, token)[0].abs().max() > 0
