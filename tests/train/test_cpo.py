"""The objective of one sample: where its gradient comes from."""

import pytest
import torch

from cacovid import ops
from cacovid.train.cpo import CPO, CPOSettings
from cacovid.train.replay import RatioSettings
from cacovid.train.rewards import Rewards
from cacovid.train.rollouts import RolloutSettings
from cacovid.types import Scores

#: The one token that the answer hangs on.
DECIDES = 7


class WantsToken:
    """Rewards rollouts that keep one token, with noise on top."""

    def __init__(self, encoder):
        self.prepare = encoder

    def __call__(self, prepared, rollouts):
        noise = torch.randn(len(rollouts), generator=torch.Generator().manual_seed(0))
        hit = rollouts[:, DECIDES].float()
        return Rewards(hit + 0.5 * noise, hit)


def gradient_of(encoder, sample, keep_logit, top):
    """Descent direction on token scores where the deciding token has the score `top`."""
    settings = CPOSettings(
        rollouts=RolloutSettings(token_rollouts=64, frame_rollouts=0),
        ratio=RatioSettings(base=0.1, dynamic=False),
        keep_logit=keep_logit,
    )
    objective = CPO(WantsToken(encoder), settings)
    prepared = objective.prepare(sample)
    grid = prepared.prompt.grid
    token = torch.zeros(grid.num_tokens)
    token[DECIDES] = top
    scores = Scores(token.requires_grad_(), torch.zeros(grid.num_frames).requires_grad_())
    progress = objective.begin(prepared, seed=1)
    update = objective.update(scores, progress)
    (gradient,) = torch.autograd.grad(update.loss, token)
    return -gradient, update.loss, progress


def test_the_loss_is_that_of_shifted_scores(encoder, samples):
    for keep_logit in (0.0, -8.0):
        _, loss, progress = gradient_of(encoder, samples[0], keep_logit, 2.0)
        masks, frames, rewards, frame_rewards = progress.replay.tensors()
        shifted = progress.old.token + keep_logit
        assert frames.shape == (0, 16)  # none was drawn: a part of nothing
        frames, still = frames[:, :0], progress.old.frame[:0]
        expected = ops.cpo_loss(
            shifted, still, shifted, still, masks, frames, rewards, frame_rewards
        )  # fmt: skip
        torch.testing.assert_close(loss, expected.token)


@pytest.mark.parametrize("top", [4.0, 8.0])
def test_tokens_that_are_ranked_high_keep_their_say(encoder, samples, top):
    """At log-odds of 0 a token of a high score is as good as kept: its gradient is lost in noise.

    Of the direction that the gradient takes, far more is the deciding token's with a keep_logit.
    """

    def share(keep_logit):
        descent, _, _ = gradient_of(encoder, samples[0], keep_logit, top)
        return float(descent[DECIDES] / descent.norm())

    assert share(-top - 4.0) > 0.3
    assert share(-top - 4.0) > 3 * abs(share(0.0))
