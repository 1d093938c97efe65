"""How much memory a training run takes, before it begins."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor


def estimate_memory(
    model: Any, policy: nn.Module, batch_tokens: int, policy_tokens: int
) -> dict[str, float]:
    """Bytes of a run's parts, by their shapes; a rough guide, within about a half.

    Args:
        model: The frozen model.
        policy: The policy.
        batch_tokens: Prompt tokens of one forward of the frozen model.
        policy_tokens: Prompt tokens that the policy reads in one update.

    Returns:
        `model`: weights. `policy`: weights, gradients and AdamW's two moments. `rollouts`: the
        widest activations of one forward of the frozen model, and its logits for 32 rollouts.
        `update`: activations that the policy's backward keeps. `total`.
    """
    text = model.config.get_text_config()
    size = next(model.parameters()).element_size()
    # Of a sharded model, what this process holds.
    held = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in held)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    widest = 6 * text.hidden_size + 3 * text.intermediate_size
    own = max((p.shape[0] for p in policy.parameters() if p.dim() == 2), default=1)
    parts = {
        "model": float(weights),
        "policy": 16.0 * trained,
        "rollouts": float(batch_tokens * widest * size + 32 * text.vocab_size * 4),
        "update": float(policy_tokens * (text.hidden_size + 8 * own) * 4),
    }
    return {**parts, "total": sum(parts.values())}
