"""`SurprisePolicy`: what a token shows, and how far it differs from the frame before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from cacovid import ops
from cacovid.errors import InvalidInputError, WrongBaseModelError
from cacovid.policies.config import PolicyConfig
from cacovid.policies.storage import StoredPolicy
from cacovid.reference.score import HeadWeights, ScoreFold, difference_to_previous_frame
from cacovid.types import Prompt, Scores


@dataclass(frozen=True, kw_only=True)
class SurpriseConfig(PolicyConfig):
    """Shape of a `SurprisePolicy`; `policy_share` and `max_frame_ratio` have no say.

    Args:
        hidden_size: `D` of the base model.
        width: Of the MLP's first layer.
        inner_width: Of its second layer, at most `width`.
        surprise: Whether the residual to the frame before is part of the state (False is the
            control of what it is worth).
        initial_keep: Probability at which training starts, about, in (0, 1).
        rms_norm_eps: Epsilon of the RMSNorm.
        score_bound: Scores are `bound * tanh(score / bound)`; None: unbounded.
    """

    hidden_size: int
    width: int = 128
    inner_width: int = 32
    surprise: bool = True
    initial_keep: float = 0.5
    rms_norm_eps: float = 1e-6
    score_bound: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("hidden_size", "width", "inner_width")
        self.require_above_zero("rms_norm_eps", "score_bound")
        if self.inner_width > self.width:
            raise InvalidInputError(
                f"inner_width is {self.inner_width} and width {self.width}; expected at most the "
                f"width"
            )
        if not 0.0 < self.initial_keep < 1.0:
            raise InvalidInputError(
                f"initial_keep is {self.initial_keep}; expected a probability in (0, 1)"
            )


class SurprisePolicy(StoredPolicy):
    """The policy of SCORE (arXiv 2603.26365; ALGORITHMS 2.1): question-blind, one MLP for all.

    With `x̂ = RMSNorm(x)` and the surprise `Δ = x̂ - x̂ of the same place in the frame before` (in
    the first frame `x̂` itself), the state of a token is `[x̂ ; Δ]`, and `p_keep =
    sigmoid(MLP(state))`. Token scores are the logits; there are no frame scores. The tokens kept
    are one global top-k over a video (`selection`).

    The first layer is linear in `x̂` and in that of the frame before, so that it is one product on
    the video and a shifted subtraction: `cacovid.ops.score` serves (`fold`), with its CPU and GPU
    forms. No text enters, so that scores may be kept for further questions on the video.

    Args:
        config: Its shape.

    >>> import cacovid
    >>> policy = SurprisePolicy(SurpriseConfig(hidden_size=8))
    >>> rows, places = torch.randn(13, 8), torch.arange(13)
    >>> prompt = cacovid.Prompt(rows, places, places[:12], places[12:], cacovid.Grid([(3, 2, 2)]))
    >>> policy(prompt).token.shape, policy(prompt).frame
    (torch.Size([12]), None)
    """

    policy_type: ClassVar[str] = "surprise"
    config_class: ClassVar[type[PolicyConfig]] = SurpriseConfig
    question_aware: ClassVar[bool] = False
    selection: ClassVar[Literal["frames", "top_k"]] = "top_k"

    def __init__(self, config: SurpriseConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.first = nn.Linear(c.hidden_size * (2 if c.surprise else 1), c.width)
        self.second = nn.Linear(c.width, c.inner_width)
        self.last = nn.Linear(c.inner_width, 1)
        for module in (self.first, self.second, self.last):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        nn.init.constant_(self.last.bias, math.log(c.initial_keep / (1.0 - c.initial_keep)))

    @property
    def name(self) -> str:
        """How tables call it."""
        return "score"

    def forward(self, prompt: Prompt) -> Scores:
        """Scores by the folded form; differentiable with respect to the weights.

        Autocast changes nothing.

        Args:
            prompt: The embedded prompt, or several packed ones, on the policy's device.

        Returns:
            Token scores in float32 (float64 for a policy in float64), no frame scores.

        Raises:
            WrongBaseModelError: if the prompt has another hidden size.
        """
        self._check(prompt)
        token, _ = ops.score(prompt.video_embeds, self.fold(), prompt.grid)
        return Scores(token)

    def plain(self, prompt: Prompt) -> Scores:
        """The formula of ALGORITHMS 2.1 as it stands, without folding.

        The first layer reads the video in the precision of its weights; what follows is in float32,
        or in float64 for a policy in float64.
        """
        self._check(prompt)
        tokens = []
        videos = prompt.video_embeds.split(list(prompt.grid.tokens_per_video))
        for rows, (_, height, width) in zip(videos, prompt.grid.sizes, strict=True):
            state = self.norm(rows.to(self.first.weight.dtype))
            if self.config.surprise:
                residual = difference_to_previous_frame(state, height * width)
                state = torch.cat((state, residual), dim=1)
            hidden = self.first(state)
            with torch.autocast(hidden.device.type, enabled=False):
                for layer in (self.second, self.last):
                    weight, bias = layer.weight.to(self._wide), layer.bias.to(self._wide)
                    hidden = F.linear(F.silu(hidden.to(self._wide)), weight, bias)
            tokens.append(hidden[:, 0])
        token = torch.cat(tokens)
        bound = self.config.score_bound
        return Scores(token if bound is None else bound * torch.tanh(token / bound))

    @property
    def _wide(self) -> torch.dtype:
        """What scores are computed in: float32, or float64 for a policy in float64."""
        return torch.promote_types(self.first.weight.dtype, torch.float32)

    def fold(self) -> ScoreFold:
        """The weights as `cacovid.ops.score` takes them; exact up to rounding.

        In float32, or in float64 for a policy in float64, whatever the precision of the weights.

        The op's attention has one slot of no effect, its frame head one feature of no effect; the
        second layer is widened to a square by rows of zeros, whose SiLU is 0.
        """
        c, wide = self.config, self._wide
        norm = self.norm.weight.to(wide).repeat(2 if c.surprise else 1)
        weight = self.first.weight.to(wide) * norm
        own, residual = weight[:, : c.hidden_size], weight[:, c.hidden_size :]
        nothing = weight.new_zeros((1, c.hidden_size))
        parts = [nothing, own, nothing]
        if c.surprise:
            parts += [residual, nothing]
        extra = c.width - c.inner_width
        zero = weight.new_zeros(1)
        return ScoreFold(
            columns=torch.cat(parts).T,
            values=weight.new_zeros((1, c.width + 1)),
            heads=1,
            token=HeadWeights(
                self.first.bias.to(wide),
                F.pad(self.second.weight.to(wide), (0, 0, 0, extra)),
                F.pad(self.second.bias.to(wide), (0, extra)),
                F.pad(self.last.weight.to(wide), (0, extra)),
                self.last.bias.to(wide),
            ),
            frame=HeadWeights(zero, zero[:, None], zero, zero[:, None], zero),
            eps=c.rms_norm_eps,
            score_bound=c.score_bound,
        )

    def _check(self, prompt: Prompt) -> None:
        if prompt.embeds.shape[1] != self.config.hidden_size:
            raise WrongBaseModelError(
                f"the prompt has hidden size {prompt.embeds.shape[1]}; the policy is for "
                f"{self.config.base_model or 'a model'} of hidden size {self.config.hidden_size}"
            )
