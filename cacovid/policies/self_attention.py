"""`SelfAttentionPolicy`: the paper's policy, one decoder layer over the whole prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, UnsupportedModelError, WrongBaseModelError
from cacovid.policies import exchanged_roles
from cacovid.policies.config import PolicyConfig
from cacovid.policies.float8 import require_float8
from cacovid.policies.folded_layer import (
    FoldCache,
    FoldedWeights,
    folded_scores,
    is_foldable,
    rows_of,
)
from cacovid.policies.storage import StoredPolicy
from cacovid.types import Prompt, Scores


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


class SelfAttentionPolicy(StoredPolicy):
    """The policy of CaCoVID (arXiv 2602.01649; ALGORITHMS 1.1, "paper policy").

    One decoder layer of the language model's architecture, without a causal mask, over the whole
    embedded prompt with its original position ids; then, after one shared RMSNorm, a token head on
    every video token and a frame head on the mean of every frame's tokens (the mean is taken
    before the norm).

    Without a gradient the folded form answers (`cacovid.policies.folded_layer`), whose weights are
    a second copy of most of the layer, made at the first use and made anew after a change; at every
    use once a gradient was asked for, until `eval()` is called.

    Args:
        config: Its shape.
    """

    policy_type: ClassVar[str] = "self_attention"
    config_class: ClassVar[type[PolicyConfig]] = SelfAttentionConfig
    unused_weights: ClassVar[tuple[str, ...]] = ("mode_selection.",)
    reads_prompt: ClassVar[bool] = True

    def __init__(self, config: SelfAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([_DecoderLayer(config)])
        self.layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.token_compress = _narrowing(config.hidden_size)
        self.frame_compress = _narrowing(config.hidden_size)
        self._folds = FoldCache()
        self._in_float8 = False

    @classmethod
    def from_language_model(
        cls, model: Any, *, exchange_roles: bool = False, **settings: Any
    ) -> Self:
        """A policy whose decoder layer starts as layer 0 of a model's language model.

        Args:
            model: A Hugging Face model with a decoder like those of Qwen2, Qwen2.5-VL, Qwen3 or
                Qwen3-VL (`self_attn` with biases on queries, keys and values or with norms of
                queries and keys; `mlp` with a gate; M-RoPE or one axis of positions).
            exchange_roles: Whether queries and keys trade places, so that video tokens attend to
                the words that ask for them from the start (`cacovid.policies.exchanged_roles`).
                Not published; the policy has as many key heads as query heads then.
            **settings: Further settings of `SelfAttentionConfig` (`base_model`, `policy_share`).

        Raises:
            UnsupportedModelError: if its layers hold other tensors, or compute something else with
                them (a scaled or partial rotary embedding, another activation).
        """
        base = model.config.get_text_config()
        rope = getattr(base, "rope_parameters", None) or {}
        theta = rope.get("rope_theta")
        for what, given, expected in (
            ("rotary embedding", rope.get("rope_type", "default"), "default"),
            ("rotary share", rope.get("partial_rotary_factor", 1.0), 1.0),
            ("activation", getattr(base, "hidden_act", "silu"), "silu"),
        ):
            if given != expected:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has the {what} {given!r}; this policy's layer has "
                    f"{expected!r}, so the model's weights would not mean the same in it"
                )
        shape = {
            "hidden_size": base.hidden_size,
            "num_attention_heads": base.num_attention_heads,
            "num_key_value_heads": base.num_key_value_heads,
            "intermediate_size": base.intermediate_size,
            "rope_theta": float(theta if theta is not None else getattr(base, "rope_theta", 1e6)),
            "rms_norm_eps": base.rms_norm_eps,
            "head_size": getattr(base, "head_dim", None),
            "mrope_section": rope.get("mrope_section"),
            # A property of the family's code, which not every checkpoint's configuration states.
            "mrope_interleaved": bool(rope.get("mrope_interleaved"))
            or str(base.model_type).startswith("qwen3_vl"),
        }
        for module in model.modules():
            layers = getattr(module, "layers", None)
            if not isinstance(layers, nn.ModuleList) or not len(layers):
                continue
            given = layers[0].state_dict()
            config = SelfAttentionConfig(
                qkv_bias="self_attn.q_proj.bias" in given,
                qk_norm="self_attn.q_norm.weight" in given,
                **shape,
                **settings,
            )
            with torch.device("meta"):
                own = _DecoderLayer(config).state_dict()
            if set(given) == set(own) and all(given[k].shape == own[k].shape for k in own):
                if exchange_roles:
                    heads = config.num_attention_heads
                    given = exchanged_roles.exchange_roles(given, heads, config.num_key_value_heads)
                    config = replace(config, num_key_value_heads=heads)
                policy = cls(config)
                policy.layers[0].load_state_dict(given)
                return policy
        raise UnsupportedModelError(
            f"{type(model).__name__} has no decoder layer whose tensors are self_attn (q_proj, "
            f"k_proj, v_proj, o_proj, and q_norm and k_norm or not), mlp (gate_proj, up_proj, "
            f"down_proj) and two norms; expected a Qwen-like language model"
        )

    def forward(self, prompt: Prompt) -> Scores:
        """Scores of packed prompts, each of which is read on its own.

        By the folded form where no gradient is asked for, else by the plain one; by the plain one
        too under autocast and `torch.compile`, and where layers were replaced or hooked.

        Args:
            prompt: The embedded prompt, or several packed ones, on the policy's device.

        Returns:
            Scores in float32 (float64 for a policy in float64).

        Raises:
            WrongBaseModelError: if the prompt has another hidden size.
            InvalidInputError: for position ids of several axes that differ, where the policy has
                one (`mrope_section`); for a policy in float8 on a device without such products.
        """
        rows = rows_of(prompt) if self._may_fold(prompt) else None
        if rows is None:
            return self.plain(prompt)
        self._check(prompt)
        weights = self.fold()
        rotation = _half_rotation(prompt.position_ids, self.config, weights.qkv_bias.dtype)
        return folded_scores(weights, self.config, prompt, rows, rotation)

    def plain(self, prompt: Prompt) -> Scores:
        """The formula of ALGORITHMS 1.1 as it stands; arguments and errors as for `forward`."""
        self._check(prompt)
        c = self.config
        hidden = prompt.embeds.to(self.layernorm.weight.dtype)
        rotation = _rotation(prompt.position_ids, c, hidden.dtype)
        offsets = prompt.prompt_offsets or (0, hidden.shape[0])
        rows = torch.cat(
            [
                self.layers[0](hidden[a:b], (rotation[0][a:b], rotation[1][a:b]))
                for a, b in pairwise(offsets)
            ]
        )
        x = rows.index_select(0, prompt.video_index)
        frames = torch.stack([part.mean(0) for part in x.split(list(prompt.grid.tokens_per_frame))])
        token = self.token_compress(self.layernorm(x))
        frame = self.frame_compress(self.layernorm(frames))
        return Scores(_keep_minus_drop(token), _keep_minus_drop(frame))

    def fold(self) -> FoldedWeights:
        """The weights of the folded form as they are now; nothing is computed without a change.

        A changed weight is folded into the same memory, so that a CUDA graph reads what the last
        call of this method wrote. Changes through `weight.data` outside training are not seen: call
        `refold`.

        Raises:
            InvalidInputError: for a policy in float8 on a device without such products.
        """
        if self._in_float8:
            self._require_float8()
        return self._folds.get(self, self._in_float8)

    def refold(self) -> None:
        """Has the weights folded again at the next use: after changes through `weight.data`."""
        self._folds.clear()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; `eval()` also has the folded weights held again."""
        if not mode:
            self._folds.clear()
            self._folds.hold = True
        return super().train(mode)

    def use_float8(self, enabled: bool = True) -> Self:
        """Has inference multiply in 8 bits (e4m3, a scale for every row), or no longer.

        For the products of the decoder layer, not for attention and heads; not stored with the
        policy. Scores are a few per cent of their spread off: measure selection before relying on
        it.

        Args:
            enabled: Whether.

        Returns:
            The policy itself.

        Raises:
            InvalidInputError: unless the policy is in bfloat16 on a GPU of compute capability 9.0
                or more, its widths are multiples of 16, and torch has scaled products.
        """
        if enabled:
            self._require_float8()
        self._in_float8 = enabled
        return self

    def head_logits(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Both outputs (drop, keep) of the heads: `[N, 2]` and `[F, 2]`, for comparisons."""
        kept: list[Tensor] = []
        hooks = [
            head.register_forward_hook(lambda _m, _i, out: kept.append(out))
            for head in (self.token_compress, self.frame_compress)
        ]
        try:
            self.plain(prompt)
        finally:
            for hook in hooks:
                hook.remove()
        return kept[0], kept[1]

    def _may_fold(self, prompt: Prompt) -> bool:
        if torch.compiler.is_compiling():
            return False
        if torch.is_grad_enabled():
            if any(p.requires_grad for p in self.parameters()):
                self._folds.hold = False  # an optimiser's step may follow that no version tells of
                return False
            if prompt.embeds.requires_grad:
                return False
        return is_foldable(self) and not torch.is_autocast_enabled(prompt.embeds.device.type)

    def _check(self, prompt: Prompt) -> None:
        c = self.config
        if prompt.embeds.shape[1] != c.hidden_size:
            raise WrongBaseModelError(
                f"the prompt has hidden size {prompt.embeds.shape[1]}; the policy is for "
                f"{c.base_model or 'a model'} of hidden size {c.hidden_size}"
            )

    def _require_float8(self) -> None:
        weight, c = self.layernorm.weight, self.config
        widths = {
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "the width of all heads": c.num_attention_heads * c.head_width,
            "the width of all key heads": c.num_key_value_heads * c.head_width,
        }
        require_float8(weight.device, weight.dtype, widths)


class _DecoderLayer(nn.Module):
    """Pre-norm attention and gated MLP, with the tensor names of Qwen2."""

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


def _narrowing(width: int) -> nn.Sequential:
    """Linear D -> D/2 -> D/4 -> D/8 -> D/16 -> 2 with SiLU between."""
    widths = [width, width // 2, width // 4, width // 8, width // 16, 2]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def _rotation(
    position_ids: Tensor, config: SelfAttentionConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[S, width]` of the rotary embedding, computed in float64."""
    cosine, sine = _half_rotation(position_ids, config, dtype)
    return torch.cat((cosine, cosine), dim=1), torch.cat((sine, sine), dim=1)


def _half_rotation(
    position_ids: Tensor, config: SelfAttentionConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Its cosines and sines `[S, width/2]`: both halves of a head turn by the same angles."""
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


def _keep_minus_drop(logits: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits[:, 1] - logits[:, 0]
