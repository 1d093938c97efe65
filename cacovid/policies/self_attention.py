"""`SelfAttentionPolicy`: the paper's policy, one decoder layer over the whole prompt."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from cacovid.errors import UnsupportedModelError, WrongBaseModelError
from cacovid.policies import exchanged_roles
from cacovid.policies.config import PolicyConfig
from cacovid.policies.decoder_layer import DecoderLayer, full_rotation, half_rotation
from cacovid.policies.float8 import require_float8
from cacovid.policies.folded_layer import (
    FoldCache,
    FoldedWeights,
    folded_scores,
    is_foldable,
    rows_of,
)
from cacovid.policies.self_attention_config import SelfAttentionConfig
from cacovid.policies.storage import StoredPolicy
from cacovid.types import Prompt, Scores


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
        self.layers = nn.ModuleList([DecoderLayer(config)])
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
                own = DecoderLayer(config).state_dict()
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
        rotation = half_rotation(prompt.position_ids, self.config, weights.qkv_bias.dtype)
        return folded_scores(weights, self.config, prompt, rows, rotation)

    def plain(self, prompt: Prompt) -> Scores:
        """The formula of ALGORITHMS 1.1 as it stands; arguments and errors as for `forward`.

        Under autocast the decoder layer computes in its precision; the heads that make the scores
        compute in that of the weights.
        """
        self._check(prompt)
        c = self.config
        hidden = prompt.embeds.to(self.layernorm.weight.dtype)
        rotation = full_rotation(prompt.position_ids, c, hidden.dtype)
        offsets = prompt.prompt_offsets or (0, hidden.shape[0])
        rows = torch.cat(
            [
                self.layers[0](hidden[a:b], (rotation[0][a:b], rotation[1][a:b]))
                for a, b in pairwise(offsets)
            ]
        )
        x = rows.index_select(0, prompt.video_index)
        frames = torch.stack([part.mean(0) for part in x.split(list(prompt.grid.tokens_per_frame))])
        with torch.autocast(x.device.type, enabled=False):
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


def _narrowing(width: int) -> nn.Sequential:
    """Linear D -> D/2 -> D/4 -> D/8 -> D/16 -> 2 with SiLU between."""
    widths = [width, width // 2, width // 4, width // 8, width // 16, 2]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def _keep_minus_drop(logits: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits[:, 1] - logits[:, 0]
