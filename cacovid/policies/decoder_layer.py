"""One decoder layer of the Qwen family, without a causal mask, and its rotary embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.errors import InvalidInputError
from cacovid.policies.self_attention_config import SelfAttentionConfig


class DecoderLayer(nn.Module):
    """Pre-norm attention and gated MLP, `[S, D]` to `[S, D]`, with the tensor names of Qwen2."""

    def __init__(self, config: SelfAttentionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = _GatedMlp(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Attention(nn.Module):
    def __init__(self, config: SelfAttentionConfig) -> None:
        super().__init__()
        d, width, bias = config.hidden_size, config.head_width, config.qkv_bias
        self.width = width
        self.q_proj = nn.Linear(d, config.num_attention_heads * width, bias)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * width, bias)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * width, bias)
        self.o_proj = nn.Linear(config.num_attention_heads * width, d, bias=False)
        eps = config.rms_norm_eps
        self.q_norm = nn.RMSNorm(width, eps=eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(width, eps=eps) if config.qk_norm else None

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        def split(projected: Tensor) -> Tensor:
            return projected.unflatten(1, (-1, self.width)).transpose(0, 1)[None]

        query, key = split(self.q_proj(x)), split(self.k_proj(x))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        value = split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(
            query, key, value, enable_gqa=key.shape[1] != query.shape[1]
        )
        return self.o_proj(mixed[0].transpose(0, 1).flatten(1))


class _GatedMlp(nn.Module):
    def __init__(self, config: SelfAttentionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def full_rotation(
    position_ids: Tensor, config: SelfAttentionConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[S, width]` of the rotary embedding, computed in float64.

    Args:
        position_ids: `[S]`, or `[3, S]` of time, height and width.
        config: The policy's shape.
        dtype: Of the result.

    Raises:
        InvalidInputError: for axes that differ, where the policy has one.
    """
    cosine, sine = half_rotation(position_ids, config, dtype)
    return torch.cat((cosine, cosine), dim=1), torch.cat((sine, sine), dim=1)


def half_rotation(
    position_ids: Tensor, config: SelfAttentionConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `full_rotation`, `[S, width/2]`: both halves of a head turn by the same angles."""
    half = config.head_width // 2
    pairs = torch.arange(half, device=position_ids.device)
    if position_ids.dim() == 2 and config.mrope_section is not None:
        places = position_ids.index_select(0, _axis_of(pairs, config)).T
    else:
        places = _one_axis(position_ids)[:, None]
    angles = places.double() * config.rope_theta ** -(pairs.double() / half)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _axis_of(pairs: Tensor, config: SelfAttentionConfig) -> Tensor:
    """The axis (0 time, 1 height, 2 width) whose positions turn each pair of a head.

    Computed on the device, so that a CUDA graph may hold it.
    """
    assert config.mrope_section is not None
    time, height, width = config.mrope_section
    if not config.mrope_interleaved:
        return (pairs >= time).long() + (pairs >= time + height).long()
    # Time, height and width take turns; where height or width has had its share, time stands in.
    high = (pairs % 3 == 1) & (pairs < 3 * height)
    wide = (pairs % 3 == 2) & (pairs < 3 * width)
    return high.long() + 2 * wide.long()


def _one_axis(position_ids: Tensor) -> Tensor:
    if position_ids.dim() == 1:
        return position_ids
    if not bool((position_ids == position_ids[:1]).all()):
        raise InvalidInputError(
            f"position_ids {tuple(position_ids.shape)} differ between axes; this policy has a "
            f"rotary embedding of one axis. Use a policy of a base model with one axis"
        )
    return position_ids[0]


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]
