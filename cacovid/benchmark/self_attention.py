"""The paper's policy at the sizes of well-known language models, and what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.policies import SelfAttentionConfig, SelfAttentionPolicy
from cacovid.policies.folded_layer import attend
from cacovid.types import Grid, Prompt

#: Text of a prompt, in tokens: before the video and after it.
TEXT = (14, 46)

#: Query heads, key heads and width of the MLP by hidden size: Qwen2 0.5B, Qwen2.5 3B, Qwen2 7B.
LAYERS = {896: (14, 2, 4864), 2048: (16, 2, 11008), 3584: (28, 4, 18944)}


def policy_of(hidden: int, dtype: torch.dtype, device: torch.device) -> SelfAttentionPolicy:
    """A policy of random weights that neither vanish nor grow from layer to layer.

    Args:
        hidden: `D`; for sizes that `LAYERS` does not have, heads of 16 and an MLP of 4*D.
        dtype: Of the weights.
        device: Where they are.
    """
    heads, key_heads, intermediate = LAYERS.get(hidden, (hidden // 16, 1, 4 * hidden))
    config = SelfAttentionConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=intermediate,
    )
    with torch.device(device):
        policy = SelfAttentionPolicy(config).requires_grad_(False).eval()
        for module in policy.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
    return policy.to(dtype)


def prompt_of(grid: Grid, embeds: Tensor) -> Prompt:
    """One prompt with its video between text.

    Args:
        grid: Of one video.
        embeds: `[N + sum(TEXT), D]`.
    """
    places = torch.arange(len(embeds), device=embeds.device)
    begin, end = TEXT[0], TEXT[0] + grid.num_tokens
    return Prompt(embeds, places, places[begin:end], places[end:], grid)


def bare(policy: SelfAttentionPolicy, tokens: int) -> Callable[[], Any]:
    """The matrix products and the attention of the folded form, on operands of their own.

    Args:
        policy: Sets sizes, dtype and device.
        tokens: `N`.
    """
    c, weights = policy.config, policy.fold()
    dtype, device = weights.qkv_bias.dtype, weights.qkv_bias.device
    rows, inner = tokens + sum(TEXT), c.num_attention_heads * c.head_width

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    def heads(count: int, length: int) -> Tensor:
        return random(length, count, c.head_width).transpose(0, 1)[None]

    query = heads(c.num_attention_heads, tokens)
    key, value = (heads(c.num_key_value_heads, rows) for _ in range(2))
    text, mixed = random(sum(TEXT), c.hidden_size), random(tokens, inner)
    gated = random(tokens, c.intermediate_size)
    narrowed = [(random(tokens, w.shape[1]), w) for w, _ in weights.token.hidden]
    video = narrowed[0][0]
    products: list[tuple[Tensor, Any]] = [
        (video, weights.qkv),
        (text, weights.qkv[inner:]),
        (mixed, weights.output),
        (video, weights.gate_up),
        (gated, weights.down),
        *narrowed,
    ]

    def run() -> list[Tensor]:
        return [attend(query, key, value), *(F.linear(x, weight) for x, weight in products)]

    return run


def flops(policy: SelfAttentionPolicy, tokens: int) -> int:
    """Operations of `bare`."""
    c = policy.config
    d, inner = c.hidden_size, c.num_attention_heads * c.head_width
    kv = 2 * c.num_key_value_heads * c.head_width
    head = sum((d >> i) * (d >> i + 1) for i in range(4))
    layer = d * (inner + kv) + inner * d + 3 * d * c.intermediate_size + head
    attention = 2 * tokens * (tokens + sum(TEXT)) * inner
    return 2 * (tokens * layer + sum(TEXT) * d * kv + attention)
