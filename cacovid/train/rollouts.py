"""The combinations of tokens that a frozen model is tried on.

Token rollouts keep some tokens of every frame; frame rollouts keep a few frames, and inside them
the density peaks (ALGORITHMS of CaCoVID, arXiv 2602.01649). `mixed`, `multinomial` and `uniform`
are there for comparison: the same number of tokens, not of one sub-space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from cacovid import ops, reference
from cacovid.errors import InvalidInputError
from cacovid.reference.frame_sample import frame_plan
from cacovid.train.limits import check_positive, check_share
from cacovid.types import Grid, Prompt, Scores

Sampler: TypeAlias = Literal["ocss", "mixed", "multinomial", "uniform"]


@dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are drawn.

    Args:
        token_rollouts: Rollouts over tokens, a greedy one included.
        frame_rollouts: Rollouts over frames, a greedy one included; 0: none, the frame scores
            are not trained.
        sampler: `"ocss"`, or for comparison `"mixed"` (*ours*: every token of a frame by its
            sub-space's probability times its weight there, so that tokens of several sub-spaces
            meet), `"multinomial"` (the scores' softmax over a frame) or `"uniform"`; all without
            replacement. Of the frame rollouts only `"uniform"` changes the law: the others draw
            frames by the softmax of the frame scores with its cap of 3/t, as `"ocss"` does.
        subspace_factor: `lambda` of OCSS.
        max_subspace_prob: Cap on a sub-space's probability; None: `clip(2/l, 0.1, 0.9)`.
        greedy: Whether the first rollout is not drawn but greedy, the best scores, as published.
            Where drawn combinations earn little, the greedy one earns far more than all of them,
            and its advantage confirms what is chosen already.
    """

    token_rollouts: int = 23
    frame_rollouts: int = 8
    sampler: Sampler = "ocss"
    subspace_factor: float = 2.0
    max_subspace_prob: float | None = None
    greedy: bool = True

    def __post_init__(self) -> None:
        if self.token_rollouts < 2:
            raise InvalidInputError(
                f"token_rollouts is {self.token_rollouts}; expected at least 2: advantages compare "
                f"rollouts with each other"
            )
        if self.frame_rollouts < 0 or self.frame_rollouts == 1:
            raise InvalidInputError(
                f"frame_rollouts is {self.frame_rollouts}; expected 0 (none) or at least 2"
            )
        check_positive(self, "subspace_factor", section="rollouts.")
        check_share(self, "max_subspace_prob", section="rollouts.")
        if self.sampler not in get_args(Sampler):
            raise InvalidInputError(
                f"sampler is {self.sampler!r}; expected one of {', '.join(get_args(Sampler))}"
            )


@dataclass(frozen=True)
class Rollouts:
    """Masks of one sample's rollouts, `G` over tokens and `G'` over frames.

    Args:
        token_masks: `[G, N]` bool.
        frame_masks: `[G', F]` bool: the drawn frames.
        frame_token_masks: `[G', N]` bool: the tokens that the frame rollouts read.
    """

    token_masks: Tensor
    frame_masks: Tensor
    frame_token_masks: Tensor

    @property
    def read(self) -> Tensor:
        """`[G + G', N]` bool: what the model reads, token rollouts first."""
        return torch.cat((self.token_masks, self.frame_token_masks))


def draw_rollouts(
    scores: Scores, prompt: Prompt, ratio: float, settings: RolloutSettings, *, seed: int, draw: int
) -> Rollouts:
    """Draws the rollouts of one sample.

    Args:
        scores: The old scores of the sample's one video.
        prompt: The sample's prompt.
        ratio: Share of each frame's tokens to keep, in (0, 1].
        settings: How.
        seed: Of the sample: the same seed, draw and scores give the same masks on every machine.
        draw: Number of the draw; every draw of a sample has its own random numbers.

    Raises:
        InvalidInputError: for a prompt of several videos, or frame rollouts without frame scores.
    """
    grid = prompt.grid
    if grid.num_videos != 1:
        raise InvalidInputError(
            f"the prompt holds {grid.num_videos} videos; rollouts are drawn for one at a time"
        )
    token_masks = _token_masks(scores.token.detach(), grid, ratio, settings, seed, draw)
    none = settings.frame_rollouts == 0
    if not none and scores.frame is None:
        raise InvalidInputError(
            "frame rollouts need frame scores, which the policy does not give; set "
            "frame_rollouts to 0"
        )
    if none or scores.frame is None:
        no_frames = token_masks.new_zeros((0, grid.num_frames))
        return Rollouts(token_masks, no_frames, token_masks[:0])
    frame_masks = _frame_masks(scores.frame.detach(), grid, ratio, settings, seed, draw)
    return Rollouts(token_masks, frame_masks, _inside(frame_masks, prompt, ratio))


def _token_masks(
    scores: Tensor, grid: Grid, ratio: float, settings: RolloutSettings, seed: int, draw: int
) -> Tensor:
    count = settings.token_rollouts
    if settings.sampler == "ocss":
        undrawn = _undrawn(settings)
        kept = ops.ocss_sample(
            scores,
            grid,
            ratio,
            count + undrawn,
            subspace_factor=settings.subspace_factor,
            max_subspace_prob=settings.max_subspace_prob,
            seed=seed,
            offset=draw,
        )[undrawn:]
    else:
        log_weights = scores
        if settings.sampler == "uniform":
            log_weights = torch.zeros_like(scores)
        elif settings.sampler == "mixed":
            log_weights = _mixed_weights(scores, grid, ratio, settings).log()
        greedy = scores if settings.greedy else None
        kept = _plain_draws(log_weights, greedy, grid, ratio, count, seed, draw)
    masks = torch.zeros((count, grid.num_tokens), dtype=torch.bool, device=scores.device)
    return masks.scatter_(1, kept.long(), True)


def _frame_masks(
    scores: Tensor, grid: Grid, ratio: float, settings: RolloutSettings, seed: int, draw: int
) -> Tensor:
    """`[G', F]` bool: the frames that frame rollouts draw."""
    undrawn = _undrawn(settings)
    count = settings.frame_rollouts + undrawn
    masks = ops.frame_sample(scores, grid, ratio, count, seed=seed, offset=draw)
    if settings.sampler == "uniform":
        even = torch.zeros_like(scores)
        alike = ops.frame_sample(even, grid, ratio, count, seed=seed, offset=draw)
        masks = torch.cat((masks[:1], alike[1:]))  # the first is greedy by the scores, as ever
    return masks[undrawn:]


def _undrawn(settings: RolloutSettings) -> int:
    """Rollouts to leave out at the front: the samplers' first one is always greedy."""
    return 0 if settings.greedy else 1


def _mixed_weights(scores: Tensor, grid: Grid, ratio: float, settings: RolloutSettings) -> Tensor:
    """`[N]` float64: probability of a token's sub-space times its weight there."""
    parts = []
    for frame in scores.view(grid.num_frames, -1):
        own = reference.subspaces(
            frame,
            ratio,
            subspace_factor=settings.subspace_factor,
            max_subspace_prob=settings.max_subspace_prob,
        )
        parts.append(own.probabilities @ own.weights)
    return torch.cat(parts)


def _plain_draws(
    log_weights: Tensor,
    greedy: Tensor | None,
    grid: Grid,
    ratio: float,
    count: int,
    seed: int,
    draw: int,
) -> Tensor:
    """`[G, K]`: tokens drawn without replacement by weights; first each frame's best of `greedy`.

    The draws after the first are the same with and without it.
    """
    frames = grid.num_frames
    each = grid.tokens_per_frame[0]
    keep = min(each, max(1, round(ratio * each)))
    generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
    noise = torch.rand((count, frames, each), generator=generator, dtype=torch.float64)
    # Gumbel top-k: a draw without replacement by the weights.
    gumbel = -torch.log(-torch.log(noise.clamp_(min=1e-300)))
    keys = log_weights.double().cpu().view(1, frames, each) + gumbel
    if greedy is not None:
        keys[0] = greedy.double().cpu().view(frames, each)
    # Stable: of equal scores the lowest index, which topk does not promise.
    order = keys.sort(dim=-1, descending=True, stable=True).indices
    top = order[..., :keep].sort(dim=-1).values
    begins = torch.arange(frames)[None, :, None] * each
    return (top + begins).flatten(1).to(log_weights.device)


def _inside(frame_masks: Tensor, prompt: Prompt, ratio: float) -> Tensor:
    """`[G', N]`: density peaks inside the drawn frames, `round(r*n)*t` tokens in all."""
    grid = prompt.grid
    each = grid.tokens_per_frame[0]
    rows = prompt.video_embeds
    (plan,) = frame_plan(grid, ratio, len(frame_masks))
    # Every rollout draws as many frames, so nothing has to be read to find them: a stable sort puts
    # the drawn ones first, ascending.
    first = frame_masks.byte().sort(dim=1, descending=True, stable=True).indices[:, : plan.choose]
    inside = torch.arange(each, device=rows.device)
    places = (first[:, :, None] * each + inside).flatten(1)
    kept = [
        own.index_select(0, ops.density_peaks(rows.index_select(0, own), plan.keep, neighbours=4))
        for own in places
    ]
    masks = torch.zeros((len(frame_masks), grid.num_tokens), dtype=torch.bool, device=rows.device)
    return masks.scatter_(1, torch.stack(kept), True)
