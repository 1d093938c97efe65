"""The shape of a `SelfAttentionPolicy`."""

from __future__ import annotations

from dataclasses import dataclass

from cacovid.errors import InvalidInputError
from cacovid.policies.config import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class SelfAttentionConfig(PolicyConfig):
    """Shape of a `SelfAttentionPolicy`: that of a decoder layer of its base model.

    Args:
        hidden_size: `D`.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        intermediate_size: Width of the layer's MLP.
        rope_theta: Base of the rotary embedding.
        rms_norm_eps: Epsilon of the norms.
        head_size: Width of a head; None: `hidden_size / num_attention_heads`.
        qkv_bias: Whether queries, keys and values have biases (Qwen2, Qwen2.5-VL).
        qk_norm: Whether every head's queries and keys are normalised (Qwen3, Qwen3-VL).
        mrope_section: How many of a head's pairs are turned by time, height and width
            (M-RoPE); None: all by one axis of positions.
        mrope_interleaved: Whether the axes take turns along a head's pairs (Qwen3-VL) instead of
            standing one after another (Qwen2.5-VL).
    """

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    head_size: int | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    mrope_section: tuple[int, ...] | None = None
    mrope_interleaved: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mrope_section is not None:  # JSON has lists
            object.__setattr__(self, "mrope_section", tuple(self.mrope_section))
        self.require_positive(
            "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"
        )
        self.require_above_zero("rope_theta", "rms_norm_eps")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidInputError(
                f"num_attention_heads is {self.num_attention_heads} and num_key_value_heads "
                f"{self.num_key_value_heads}; expected a multiple"
            )
        if self.hidden_size % 16 or self.hidden_size < 16:
            raise InvalidInputError(
                f"hidden_size is {self.hidden_size}; expected a multiple of 16: the heads narrow "
                f"it to a sixteenth"
            )
        if self.head_size is None and self.hidden_size % self.num_attention_heads:
            raise InvalidInputError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}; give head_size"
            )
        if self.head_width % 2:
            raise InvalidInputError(
                f"a head is {self.head_width} wide; expected an even width: the rotary embedding "
                f"turns pairs"
            )
        section = self.mrope_section
        if section is not None and (len(section) != 3 or 2 * sum(section) != self.head_width):
            raise InvalidInputError(
                f"mrope_section is {section}; expected the pairs of time, height and width, "
                f"{self.head_width // 2} in all"
            )

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_size or self.hidden_size // self.num_attention_heads
