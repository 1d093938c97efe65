"""Received attention: column means of an attention map that is never held as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

#: Entries of the map that are held at a time.
HELD = 1 << 25


def column_means(
    query: Tensor, key: Tensor, scale: float, hidden: Tensor | None = None, held: int = HELD
) -> Tensor:
    """Attention that each key receives, averaged over heads and queries.

    `a_j = mean over heads h and queries i of softmax_j(scale * q_hi k_hj)`, summed block by block
    of queries, so that the model's own attention may be SDPA or FlashAttention, which keep no map.

    Args:
        query: `[B, H, R, d]` float.
        key: `[B, H, S, d]` float, or `[B, H', S, d]` with `H` a multiple of `H'`.
        scale: Of the products.
        hidden: `[R, S]` bool: keys that a query does not see.
        held: Entries of the map held at a time.

    Returns:
        `[B, S]` float32. Deterministic.
    """
    batch, heads, asking, _ = query.shape
    key = key.repeat_interleave(heads // key.shape[1], dim=1)
    total = key.shape[2]
    at_once = max(1, held // (heads * asking * total))
    height = max(1, held // (heads * total)) if at_once == 1 else asking
    out = torch.empty(batch, total, dtype=torch.float32, device=query.device)
    for begin in range(0, batch, at_once):
        part = slice(begin, begin + at_once)
        columns = torch.zeros_like(out[part])
        for first in range(0, asking, height):
            rows = slice(first, first + height)
            logits = torch.matmul(query[part, :, rows], key[part].transpose(2, 3)).float() * scale
            if hidden is not None:
                logits.masked_fill_(hidden[rows], float("-inf"))
            columns += logits.softmax(-1).sum(dim=(1, 2))
        out[part] = columns / (heads * asking)
    return out
