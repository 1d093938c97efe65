"""A decoder layer whose queries are its keys and whose keys are its queries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def exchange_roles(
    weights: Mapping[str, Tensor], heads: int, key_value_heads: int
) -> dict[str, Tensor]:
    """Weights with which a token attends to those that attend to it with the given ones.

    A language model's question tokens attend to the video before them, never the other way round:
    its layers know which video tokens a word asks for, but not which words ask for a video token.
    The logit of a pair is a product of one's query and the other's key, each turned by its own
    position, so with both matrices exchanged the video token's logit for the word is what the
    word's was for the video token.

    Args:
        weights: The layer's, with the tensor names of Qwen2 or Qwen3: queries `[heads * width,
            D]`, keys and values `[key_value_heads * width, D]`, their biases, norms `[width]`.
        heads: Query heads.
        key_value_heads: Key and value heads, of which each serves `heads / key_value_heads` query
            heads. The result has as many as query heads: every head has a key of its own now.

    Returns:
        As given, but queries, keys and values `[heads * width, D]`; any dtype, none is changed in
        place.
    """
    out = dict(weights)
    for kind in ("weight", "bias"):
        q, k, v = (f"self_attn.{name}_proj.{kind}" for name in "qkv")
        if q in weights:
            out[k] = weights[q]
            out[q], out[v] = (
                weights[name]
                .unflatten(0, (key_value_heads, -1))
                .repeat_interleave(heads // key_value_heads, dim=0)
                .flatten(0, 1)
                for name in (k, v)
            )
    q, k = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
    if q in weights:
        out[q], out[k] = weights[k], weights[q]
    return out
