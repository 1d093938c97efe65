"""The same results by the plain procedures: what the ops are measured against.

Each follows the words of its publication step by step in eager PyTorch: frame by frame, with a
decision on the host wherever one is described.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid import reference
from cacovid.policies import CrossAttentionPolicy
from cacovid.reference.score import heads
from cacovid.types import Grid, Prompt, floor_budget


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
    return heads(u, frames, policy.token_head.weights, policy.frame_head.weights, c.score_bound)


def selection_by_loops(
    tokens: Tensor, frame_scores: Tensor, frames: int, retention: float, share: float = 0.5
) -> Tensor:
    """Budget and selection, one frame and one token of the budget after another.

    Args:
        tokens: `[N]`.
        frame_scores: `[t]`.
        frames: `t`.
        retention: `r`.
        share: Of the budget, for the scores.
    """
    n = len(tokens) // frames
    total = floor_budget(retention, len(tokens))
    budget = floor_budget(share * retention, len(tokens))
    ratio = 1.5 * retention
    scaled = 3.0 * frame_scores / frame_scores.abs().max()
    p = torch.softmax(scaled, dim=0).clamp(1 / (2 * frames), ratio / (frames * retention))
    cap = min(n, max(1, floor_budget(share * ratio, n)))
    quotas = (p / p.sum() * round(share * retention * len(tokens))).round().clamp(1, cap).long()
    while int(quotas.sum()) > budget:
        quotas[quotas.argmax()] -= 1
    while int(quotas.sum()) < budget:
        quotas[quotas.argmin()] += 1
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    for frame in range(frames):
        best = tokens[frame * n : (frame + 1) * n].topk(int(quotas[frame])).indices
        mask[frame * n + best] = True
    others = (~mask).nonzero().flatten()
    rest = total - int(mask.sum())
    if rest > 0:
        mask[others[torch.linspace(0, len(others) - 1, rest).round().long()]] = True
    return mask.nonzero().flatten()


def rollouts_by_frames(tokens: Tensor, frames: int, ratio: float, rollouts: int) -> Tensor:
    """OCSS rollouts, each frame and each rollout on its own.

    Args:
        tokens: `[N]`.
        frames: `t`.
        ratio: `r`.
        rollouts: `G`.
    """
    n = len(tokens) // frames
    k = max(1, round(ratio * n))
    masks = torch.zeros(rollouts, len(tokens), dtype=torch.bool)
    for frame in range(frames):
        scores = tokens[frame * n : (frame + 1) * n]
        spaces = reference.subspaces(scores, ratio)
        masks[0, frame * n + scores.topk(k).indices] = True
        for g in range(1, rollouts):
            space = int(torch.multinomial(spaces.probabilities, 1))
            drawn = torch.multinomial(spaces.weights[space], k)
            masks[g, frame * n + spaces.order[drawn]] = True
    return masks


def max_min_by_matrix(rows: Tensor, k: int) -> Tensor:
    """Max-min selection from the matrix of all distances, O(k^2 N): every step searches the rows
    of all that are chosen.

    Args:
        rows: `[N, D]`.
        k: How many to choose.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    distances = 1.0 - unit @ unit.T
    chosen = distances.topk(2, dim=0, largest=False).values[1].argmax()[None]
    for _ in range(k - 1):
        nearest = distances.index_select(0, chosen).min(dim=0).values
        chosen = torch.cat([chosen, nearest.argmax()[None]])
    return chosen


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
