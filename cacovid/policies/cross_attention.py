"""`CrossAttentionPolicy`: single-layer question-to-video cross-attention, made to be fused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid import ops
from cacovid.errors import InvalidInputError, WrongBaseModelError
from cacovid.policies.config import PolicyConfig
from cacovid.policies.storage import StoredPolicy
from cacovid.reference.score import (
    HeadWeights,
    ScoreFold,
    difference_to_previous_frame,
    heads,
)
from cacovid.types import Prompt, Scores


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig(PolicyConfig):
    """Shape of a `CrossAttentionPolicy`.

    Args:
        hidden_size: `D` of the base model.
        slots: `Q` learned latents that read the question; 0: the video attends to the question's
            tokens themselves and a learned null token, so that up to `d - 1` tokens of a
            question cost `H` columns of the fold each, and more of them a small product besides
            (`CrossAttentionPolicy.fold`); above 1,024 slots in all (511 tokens with two heads) a
            GPU has no kernel for it (`cacovid.ops.score`).
        slot_width: Width of the question side.
        slot_heads: Heads of the latents' attention to the question.
        heads: `H`, heads of the video's attention to the slots.
        head_size: `d`.
        token_features: `P_t`.
        frame_features: `P_f`.
        inter_frame: Whether the difference to the previous frame has columns of its own.
        rms_norm_eps: Epsilon of both RMSNorms.
        score_bound: Scores are `bound * tanh(score / bound)`; None: unbounded.
    """

    hidden_size: int
    slots: int = 32
    slot_width: int = 128
    slot_heads: int = 4
    heads: int = 2
    head_size: int = 64
    token_features: int = 32
    frame_features: int = 32
    inter_frame: bool = False
    rms_norm_eps: float = 1e-6
    score_bound: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive(
            "hidden_size", "slot_width", "slot_heads", "heads", "head_size", "token_features",
            "frame_features",
        )  # fmt: skip
        self.require_above_zero("rms_norm_eps", "score_bound")
        if not isinstance(self.slots, int) or self.slots < 0:
            raise InvalidInputError(
                f"slots is {self.slots!r}; expected a number of latents, or 0 for the question's "
                f"own tokens"
            )
        if self.slots and self.slot_width % self.slot_heads:
            raise InvalidInputError(
                f"slot_width is {self.slot_width} and slot_heads {self.slot_heads}; expected a "
                f"multiple"
            )


class CrossAttentionPolicy(StoredPolicy):
    """The default policy (ALGORITHMS 1.1, "fused policy").

    Slots read the question by one attention layer; every video token attends to the slots; two
    small heads give token and frame scores. Nothing of width `D` is kept, no rotary embedding:
    for a given question everything that reads the video folds into one skinny matrix product
    (`fold`, `cacovid.ops.score`).

    Args:
        config: Its shape.
    """

    policy_type: ClassVar[str] = "cross_attention"
    config_class: ClassVar[type[PolicyConfig]] = CrossAttentionConfig

    def __init__(self, config: CrossAttentionConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        width, inner = c.slot_width, c.heads * c.head_size
        features = c.token_features + c.frame_features
        self.video_norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.question_norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        if c.slots:
            self.latents = nn.Parameter(torch.randn(c.slots, width))
            self.slot_query = nn.Linear(width, width, bias=False)
            self.slot_key = nn.Linear(c.hidden_size, width, bias=False)
            self.slot_value = nn.Linear(c.hidden_size, width, bias=False)
            self.slot_output = nn.Linear(width, width, bias=False)
        else:
            self.null = nn.Parameter(torch.randn(1, width))
            self.slot_input = nn.Linear(c.hidden_size, width, bias=False)
        self.query = nn.Linear(c.hidden_size, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.features = nn.Linear(c.hidden_size, features, bias=False)
        self.output = nn.Linear(inner, features, bias=False)
        if c.inter_frame:
            self.difference = nn.Linear(c.hidden_size, features, bias=False)
        self.token_head = _Head(c.token_features)
        self.frame_head = _Head(c.frame_features)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if not c.slots:
            self._attend_to_like_words()

    @torch.no_grad()
    def _attend_to_like_words(self) -> None:
        """Starts with every video token attending to the question's words that it is like.

        The query is the key of the same vector, in a random subspace that keeps lengths and angles
        up to chance, so that logits start near `sqrt(d)` times the cosine; the null token starts
        like nothing. Base models align the projector's output with word embeddings; rewards are
        too noisy to find that alignment again (CPO with 50,000 rollouts on the embedded task:
        greedy selection at 10% right on 0.81 in place of 0.75 of 300 questions; one run of each).
        """
        nn.init.orthogonal_(self.slot_input.weight)
        nn.init.orthogonal_(self.key.weight)
        self.query.weight.copy_(self.key.weight @ self.slot_input.weight)
        self.null.mul_(0.05)

    def forward(self, prompt: Prompt) -> Scores:
        """Scores by the folded form where no gradient is asked for, else by the plain one.

        Args:
            prompt: The embedded prompt, or several packed ones, on the policy's device.

        Returns:
            Scores in float32 (float64 for a policy in float64).

        Raises:
            WrongBaseModelError: if the prompt has another hidden size.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self.plain(prompt)
        token, frame = ops.score(prompt.video_embeds, self.folds(prompt), prompt.grid)
        return Scores(token, frame)

    def plain(self, prompt: Prompt) -> Scores:
        """The formula of ALGORITHMS 1.1 as it stands, without folding.

        Under autocast the video and the question are read in its precision, else in that of the
        weights; the heads that make the scores compute in float32, or in float64 for a policy in
        float64.
        """
        self._check_width(prompt.embeds, "prompt")
        c = self.config
        tokens, frames = [], []
        questions = self._questions(prompt)
        videos = prompt.video_embeds.split(list(prompt.grid.tokens_per_video))
        for x, question, size in zip(videos, questions, prompt.grid.sizes, strict=True):
            x = self.video_norm(x.to(self.query.weight.dtype))
            slots = self.read_question(question)
            query = self.query(x).unflatten(1, (c.heads, -1)).transpose(0, 1)
            key = self.key(slots).unflatten(1, (c.heads, -1)).transpose(0, 1)
            value = self.value(slots).unflatten(1, (c.heads, -1)).transpose(0, 1)
            logits = query @ key.transpose(1, 2) / math.sqrt(c.head_size)
            mixed = (torch.softmax(logits, dim=-1) @ value).transpose(0, 1).flatten(1)
            u = self.features(x) + self.output(mixed)
            if c.inter_frame:
                u = u + difference_to_previous_frame(self.difference(x), size[1] * size[2])
            with torch.autocast(u.device.type, enabled=False):
                token, frame = heads(
                    u.to(self._wide),
                    size[0],
                    self.token_head.weights(self._wide),
                    self.frame_head.weights(self._wide),
                    c.score_bound,
                )
            tokens.append(token)
            frames.append(frame)
        return Scores(torch.cat(tokens), torch.cat(frames))

    def folds(self, prompt: Prompt) -> list[ScoreFold]:
        """The fold of every video's question; questions that are shared are folded once."""
        self._check_width(prompt.embeds, "prompt")
        questions = self._questions(prompt)
        if prompt.question_offsets is None:
            return [self.fold(questions[0])] * prompt.grid.num_videos
        return [self.fold(question) for question in questions]

    def fold(self, question: Tensor, *, fold_keys: bool | None = None) -> ScoreFold:
        """Folds a question into the weights that read the video.

        Exact up to rounding (3e-15 relative in float64). In float32, or in float64 for a policy in
        float64; weights of fewer bits read the question as they are. Autocast changes nothing.

        Args:
            question: `[L, D]` float, the question tokens' embeddings; `L` may be 0.
            fold_keys: Whether the slots' keys are folded into the columns that read the video,
                `H*Q` of them, or meet the `H*d` queries afterwards: the same scores up to rounding.
                None: they are folded as long as that makes no more columns, for `Q <= d`.

        Raises:
            InvalidInputError: for another number of dimensions, or another device.
            WrongBaseModelError: for another hidden size.
        """
        own = self.query.weight.device
        if question.device != own:
            raise InvalidInputError(
                f"question is on {question.device} and the policy on {own}; move one of them"
            )
        with torch.autocast("cpu" if question.is_meta else question.device.type, enabled=False):
            return self._fold(question, fold_keys)

    def _fold(self, question: Tensor, fold_keys: bool | None) -> ScoreFold:
        c = self.config
        wide = self._wide
        slots = self.read_question(question).to(wide)
        key = F.linear(slots, self.key.weight.to(wide)).unflatten(1, (c.heads, -1))
        value = F.linear(slots, self.value.weight.to(wide)).unflatten(1, (c.heads, -1))
        query = self.query.weight.to(wide).unflatten(0, (c.heads, -1)) / math.sqrt(c.head_size)
        folded = len(slots) <= c.head_size if fold_keys is None else fold_keys
        # [H*Q, D]: (W_q k^T)^T of each head; or [H*d, D]: W_q^T of each.
        read = (key.transpose(0, 1) @ query if folded else query).flatten(0, 1)
        output = self.output.weight.to(wide)
        written = output.unflatten(1, (c.heads, -1)).permute(1, 2, 0)  # [H, d, P]
        parts = [read, self.features.weight.to(wide)]
        if c.inter_frame:
            parts.append(self.difference.weight.to(wide))
        return ScoreFold(
            columns=(torch.cat(parts) * self.video_norm.weight.to(wide)).T,
            values=(value.transpose(0, 1) @ written).flatten(0, 1),
            heads=c.heads,
            token=self.token_head.weights(wide),
            frame=self.frame_head.weights(wide),
            eps=c.rms_norm_eps,
            score_bound=c.score_bound,
            keys=None if folded else key.transpose(0, 1).flatten(0, 1),
        )

    @property
    def _wide(self) -> torch.dtype:
        """What scores are computed in: float32, or float64 for a policy in float64."""
        return torch.promote_types(self.query.weight.dtype, torch.float32)

    def read_question(self, question: Tensor) -> Tensor:
        """The slots `[Q, width]` that the video attends to.

        Args:
            question: `[L, D]` float.

        Raises:
            InvalidInputError: for another number of dimensions.
            WrongBaseModelError: for another hidden size.
        """
        if question.dim() != 2:
            raise InvalidInputError(
                f"question has shape {tuple(question.shape)}; expected [L, D], the question "
                f"tokens' embeddings"
            )
        self._check_width(question, "question")
        z = self.question_norm(question.to(self.query.weight.dtype))
        if not self.config.slots:
            return torch.cat((self.null, self.slot_input(z)))
        if not len(z):
            return self.latents
        split = (self.config.slot_heads, -1)
        query = self.slot_query(self.latents).unflatten(1, split).transpose(0, 1)
        key = self.slot_key(z).unflatten(1, split).transpose(0, 1)
        value = self.slot_value(z).unflatten(1, split).transpose(0, 1)
        logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        mixed = (torch.softmax(logits, dim=-1) @ value).transpose(0, 1).flatten(1)
        return self.latents + self.slot_output(mixed)

    def _questions(self, prompt: Prompt) -> list[Tensor]:
        rows, offsets = prompt.question_embeds, prompt.question_offsets
        if offsets is None:
            return [rows] * prompt.grid.num_videos
        return [rows[begin:end] for begin, end in pairwise(offsets)]

    def _check_width(self, embeds: Tensor, what: str) -> None:
        if embeds.shape[1] != self.config.hidden_size:
            raise WrongBaseModelError(
                f"the {what} has hidden size {embeds.shape[1]}; the policy is for "
                f"{self.config.base_model or 'a model'} of hidden size {self.config.hidden_size}"
            )


class _Head(nn.Module):
    """A bias, SiLU, Linear, SiLU, Linear to one score."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.score.bias)

    def weights(self, dtype: torch.dtype) -> HeadWeights:
        own = (self.bias, self.hidden.weight, self.hidden.bias, self.score.weight, self.score.bias)
        return HeadWeights(*(weight.to(dtype) for weight in own))
