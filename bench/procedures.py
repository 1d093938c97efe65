"""Plain eager forms that the CPU ops are measured against, beside `cacovid.benchmark.published`."""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.policies import CrossAttentionPolicy
from cacovid.reference.score import heads
from cacovid.types import Grid, Prompt


def unfolded_scores(
    video: Tensor, question: Tensor, policy: CrossAttentionPolicy, frames: int
) -> tuple[Tensor, Tensor]:
    """The cross-attention policy without its fold, in the policy's own precision.

    Args:
        video: `[N, D]`.
        question: `[L, D]`.
        policy: The policy; without inter-frame columns.
        frames: `t`.
    """
    c = policy.config
    dtype = policy.query.weight.dtype
    x = policy.video_norm(video.to(dtype))
    slots = policy.read_question(question)
    query, key, value = (
        layer(rows).unflatten(1, (c.heads, -1)).transpose(0, 1)
        for layer, rows in ((policy.query, x), (policy.key, slots), (policy.value, slots))
    )
    attention = torch.softmax(query @ key.transpose(1, 2) / c.head_size**0.5, dim=-1)
    u = policy.features(x) + policy.output((attention @ value).transpose(0, 1).flatten(1))
    token, frame = (head.weights(dtype) for head in (policy.token_head, policy.frame_head))
    return heads(u, frames, token, frame, c.score_bound)


def repeat_and_index(prompt: Prompt, masks: Tensor) -> list[Tensor]:
    """The prompts of all rollouts by repeating the whole one and indexing each copy.

    Args:
        prompt: One prompt with one video.
        masks: `[G, N]`.
    """
    whole = prompt.embeds.repeat(len(masks), 1, 1)
    keep = torch.ones(len(masks), prompt.embeds.shape[0], dtype=torch.bool)
    keep[:, prompt.video_index] = masks
    return [rows[kept] for rows, kept in zip(whole, keep, strict=True)]


def example_prompt(grid: Grid, width: int, dtype: torch.dtype) -> Prompt:
    """A prompt of one video, 20 tokens of text before it and 40 after it."""
    length = grid.num_tokens + 60
    return Prompt(
        embeds=torch.randn(length, width).to(dtype),
        position_ids=torch.arange(length),
        video_index=torch.arange(20, 20 + grid.num_tokens),
        question_index=torch.arange(20 + grid.num_tokens, length),
        grid=grid,
    )
