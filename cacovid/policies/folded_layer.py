"""`SelfAttentionPolicy` for inference: folded weights, and only the rows that a score depends on.

What differs from the plain form, none of it but in rounding:

- The norms' weights stand in the projections that follow, `RMSNorm(x; w) W^T = RMSNorm(x) (W w)^T`;
  queries, keys and values are one product, gate and up another; and the last layer gives keep less
  drop itself, in float32.
- Text gives keys and values only: queries, the MLP and the heads are computed for video tokens.
- Prompts of a pack share every product; attention runs prompt by prompt, prompts of one shape
  together. Nothing is padded.
- The MLP and the heads go block of rows by block of rows, through the same memory.

`down_proj` and the heads' first layer are not multiplied together, although nothing but a norm
stands between them: the norm needs the row of width D itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacovid.policies import decoder_layer, float8
from cacovid.policies.float8 import Float8Weight
from cacovid.types import Grid, Prompt, Scores

if TYPE_CHECKING:
    from cacovid.policies.self_attention import SelfAttentionPolicy
    from cacovid.policies.self_attention_config import SelfAttentionConfig

#: Rows that go through the MLP at a time on the CPU: few enough that their 2*I values come from a
#: cache or memory that is mapped already, enough that the weights' traffic does not count.
CPU_ROWS = 1024

#: Elements of a block's 2*I values on a GPU: a gigabyte in 16 bits, tens of thousands of rows of a
#: small model and 14,000 of a 7B one, so that 200,000 tokens do not need 15 GB.
GPU_ELEMENTS = 2**29


class Head(NamedTuple):
    """A narrowing head without its norm.

    Args:
        hidden: Weights `[out, in]` and biases `[out]` of the layers before the last.
        last: `[D/16]` float32 (float64 for a policy in float64): keep less drop.
        last_bias: `[]` of the same dtype.
    """

    hidden: tuple[tuple[Tensor, Tensor], ...]
    last: Tensor
    last_bias: Tensor


class FoldedWeights(NamedTuple):
    """The policy's weights as inference uses them; those that nothing folds into are its own.

    Args:
        qkv: `[(H + 2*H_kv)*d, D]`, behind the input norm.
        qkv_bias: `[(H + 2*H_kv)*d]`; zeros for a layer without biases.
        qk_norm: `[H + H_kv, d]`: the weights of the norms of queries and keys, head by head; None
            for a layer without. They stand before the rotation and fold into nothing.
        output: `[D, H*d]`.
        gate_up: `[2*I, D]`, behind the second norm.
        down: `[D, I]`.
        token: The token head, behind the last norm.
        frame: The frame head, behind the last norm.
    """

    qkv: Tensor | Float8Weight
    qkv_bias: Tensor
    qk_norm: Tensor | None
    output: Tensor | Float8Weight
    gate_up: Tensor | Float8Weight
    down: Tensor | Float8Weight
    token: Head
    frame: Head


def fold(policy: SelfAttentionPolicy, in_float8: bool) -> FoldedWeights:
    """Folds a policy's weights; exact up to rounding.

    Args:
        policy: Whose layers are plain `nn.Linear` and `nn.RMSNorm` (`is_foldable`).
        in_float8: Whether the layer's products are to run in 8 bits.
    """
    layer: Any = policy.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    before, after = layer.input_layernorm.weight, layer.post_attention_layernorm.weight

    def weight(value: Tensor) -> Tensor | Float8Weight:
        return float8.quantise_weight(value) if in_float8 else value.detach()

    def bias(part: Any) -> Tensor:
        own: Tensor | None = part.bias
        return part.weight.new_zeros(len(part.weight)) if own is None else own

    norms = None
    if attention.q_norm is not None:
        heads = ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj))
        norms = torch.cat(
            [norm.weight.expand(len(part.weight) // len(norm.weight), -1) for norm, part in heads]
        )
    return FoldedWeights(
        qkv=weight(torch.cat([part.weight * before for part in projections])),
        qkv_bias=torch.cat([bias(part) for part in projections]),
        qk_norm=norms,
        output=weight(attention.o_proj.weight),
        gate_up=weight(torch.cat([mlp.gate_proj.weight * after, mlp.up_proj.weight * after])),
        down=weight(mlp.down_proj.weight),
        token=_fold_head(policy.token_compress, policy.layernorm.weight),
        frame=_fold_head(policy.frame_compress, policy.layernorm.weight),
    )


def _fold_head(head: nn.Sequential, norm: Tensor) -> Head:
    linears: list[Any] = [module for module in head if isinstance(module, nn.Linear)]
    first, *middle, last = linears
    exact = torch.float64 if norm.dtype == torch.float64 else torch.float32
    own, bias = last.weight.to(exact), last.bias.to(exact)
    return Head(
        (
            (first.weight * norm, first.bias.detach()),
            *((layer.weight.detach(), layer.bias.detach()) for layer in middle),
        ),
        own[1] - own[0],
        bias[1] - bias[0],
    )


def is_foldable(policy: SelfAttentionPolicy) -> bool:
    """Whether the layers are what `fold` reads: no adapters, quantised or hooked layers."""
    kinds = (nn.Linear, nn.RMSNorm, nn.SiLU, nn.ModuleList, nn.Sequential)
    for name, module in policy.named_modules():
        if not name:
            continue
        own = type(module) in kinds or type(module).__module__ == decoder_layer.__name__
        if not own or module._forward_hooks or module._forward_pre_hooks:
            return False
    return all(type(weight) is nn.Parameter for weight in policy.parameters())


class FoldCache:
    """The folded weights of one policy, made anew when a weight has changed.

    A change in place is seen by the tensor's version, which neither fused optimisers nor writes
    through `.data` raise. So nothing is held while a policy is trained (`hold`), and `clear` makes
    up for the rest. Weights of the same shape, dtype and device are folded into the same memory,
    which a CUDA graph may read. Copies of a policy begin with an empty cache.
    """

    def __init__(self) -> None:
        #: Whether a fold serves until a version changes; else it is made anew at every use.
        self.hold = True
        self._lock = threading.Lock()
        self._state: tuple[Any, ...] | None = None
        self._weights: FoldedWeights | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldCache:
        return FoldCache()

    def __reduce__(self) -> tuple[type[FoldCache], tuple[()]]:
        return FoldCache, ()

    def clear(self) -> None:
        """Has the weights folded again at the next use, into the same memory."""
        with self._lock:
            self._state = None

    @torch.no_grad()
    def get(self, policy: SelfAttentionPolicy, in_float8: bool) -> FoldedWeights:
        """The weights of `policy` as they are now.

        Args:
            policy: Always the same one.
            in_float8: Whether the layer's products run in 8 bits.
        """
        own = tuple(policy.parameters())
        with self._lock:
            state = (in_float8, *map(_state_of, own))
            # The parameters themselves are kept too, so that no address stands for two of them.
            known = self._state[0] if self._state is not None and self.hold else None
            if self._weights is None or known != state:
                self._weights = _into(self._weights, fold(policy, in_float8))
                self._state = (state, own)
            return self._weights


def _state_of(weight: Tensor) -> Any:
    # Tensors of inference mode have no version: what never equals itself is folded at every use.
    version = object() if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr(), version, weight.dtype, weight.device


def _into(old: Any, new: Any) -> Any:
    """`new`, in the memory of `old` wherever that has its shape and is not the policy's own."""
    if isinstance(new, Tensor):
        if not isinstance(old, Tensor) or old.data_ptr() == new.data_ptr():
            return new
        if (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
            return new
        return old.copy_(new)
    if isinstance(new, tuple):
        parts = old if type(old) is type(new) and len(old) == len(new) else (None,) * len(new)
        made = [_into(a, b) for a, b in zip(parts, new, strict=True)]
        return type(new)(*made) if hasattr(new, "_fields") else tuple(made)
    return new


class Rows(NamedTuple):
    """Which rows of a pack are video and which are text, prompt by prompt.

    Args:
        video: `[N]` int64, ascending in each prompt.
        text: `[S - N]` int64, ascending.
        video_offsets: Where each prompt's part of `video` begins, and `N`; host integers.
        text_offsets: Where each prompt's part of `text` begins, and `S - N`; host integers.
    """

    video: Tensor
    text: Tensor
    video_offsets: tuple[int, ...]
    text_offsets: tuple[int, ...]


def rows_of(prompt: Prompt) -> Rows | None:
    """The rows of a pack; None where prompts do not hold their videos in the pack's order.

    Nothing waits for the device but for a pack of several prompts, whose videos' places are read
    back once: they alone tell which videos a prompt holds.
    """
    total, video = prompt.embeds.shape[0], prompt.video_index
    offsets = prompt.prompt_offsets or (0, total)
    is_video = torch.zeros(total, dtype=torch.uint8, device=video.device)
    is_video.index_fill_(0, video, 1)
    text = is_video.sort(stable=True).indices[: total - len(video)]
    counts = [len(video)]
    if len(offsets) > 2:
        ends = torch.tensor(offsets[1:], device=video.device)
        owner = torch.searchsorted(ends, video, right=True)
        held = torch.zeros_like(ends).scatter_add_(0, owner, torch.ones_like(owner))
        mixed_up = (owner[1:] < owner[:-1]).any().long()
        *counts, wrong = torch.cat((held, mixed_up[None])).tolist()
        if wrong:
            return None
    lengths = [end - begin for begin, end in pairwise(offsets)]
    return Rows(
        video,
        text,
        (0, *accumulate(counts)),
        (0, *accumulate(n - own for n, own in zip(lengths, counts, strict=True))),
    )


def folded_scores(
    weights: FoldedWeights,
    config: SelfAttentionConfig,
    prompt: Prompt,
    rows: Rows,
    rotation: tuple[Tensor, Tensor],
) -> Scores:
    """The scores of `SelfAttentionPolicy.plain`, up to rounding.

    Args:
        weights: Folded.
        config: The policy's.
        prompt: One prompt or several packed ones.
        rows: Its rows.
        rotation: Cosines and sines `[S, d/2]` of the rotary embedding, in the policy's dtype.

    Returns:
        Scores in float32 (float64 for a policy in float64).
    """
    dtype, eps = weights.qkv_bias.dtype, config.rms_norm_eps
    x = prompt.embeds.index_select(0, rows.video).to(dtype)
    mixed = _attention(weights, config, prompt, rows, rotation, x)
    _add_product(x, mixed, weights.output)
    del mixed
    token = torch.empty(len(x), dtype=weights.token.last.dtype, device=x.device)
    for block in _blocks(x, config.intermediate_size):
        part = x[block]
        _add_product(part, _gated(_normalised(part, eps), weights.gate_up), weights.down)
        torch.addmv(
            weights.token.last_bias, *_narrowed(weights.token, _normalised(part, eps)),
            out=token[block],
        )  # fmt: skip
    means = _normalised(_frame_means(x, prompt.grid), eps)
    frame = torch.addmv(weights.frame.last_bias, *_narrowed(weights.frame, means))
    return Scores(token, frame)


def _attention(
    weights: FoldedWeights,
    config: SelfAttentionConfig,
    prompt: Prompt,
    rows: Rows,
    rotation: tuple[Tensor, Tensor],
    video: Tensor,
) -> Tensor:
    """What every video token gathers from its prompt, `[N, H*d]`."""
    heads, kv_heads, width = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_width,
    )
    inner = heads * width
    eps = config.rms_norm_eps
    own = _product(_normalised(video, eps), weights.qkv, weights.qkv_bias)
    _normalise_heads_(own, weights.qk_norm, eps)
    _rotate_(own[:, : inner + kv_heads * width], rotation, rows.video, width)
    kv = own[:, inner:]
    text = kv[:0]
    if len(rows.text):
        others = prompt.embeds.index_select(0, rows.text).to(video.dtype)
        keys_and_values = _part(weights.qkv, inner)
        text = _product(_normalised(others, eps), keys_and_values, weights.qkv_bias[inner:])
        _normalise_heads_(text, None if weights.qk_norm is None else weights.qk_norm[heads:], eps)
        _rotate_(text[:, : kv_heads * width], rotation, rows.text, width)

    def split(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, width)).transpose(-2, -3)  # [..., heads, rows, d]

    parts: list[Tensor | None] = [None] * (len(rows.video_offsets) - 1)
    for (count, words), members in _groups(rows).items():
        if not count:
            continue
        queries, read = [], []
        for i in members:
            begin, first = rows.video_offsets[i], rows.text_offsets[i]
            queries.append(own[begin : begin + count, :inner])
            pieces = [kv[begin : begin + count], text[first : first + words]]
            read.append(torch.cat(pieces) if words else pieces[0])
        key, value = _stacked(read).split(kv_heads * width, dim=-1)
        mixed = attend(split(_stacked(queries)), split(key), split(value))
        for i, one in zip(members, mixed.transpose(1, 2).flatten(2), strict=True):
            parts[i] = one
    found = [part for part in parts if part is not None]
    return found[0] if len(found) == 1 else torch.cat(found)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask, of grouped heads, by a kernel that keeps no matrix of weights.

    Args:
        query: `[prompts, H, rows, d]`.
        key: `[prompts, H_kv, all rows, d]`.
        value: Like `key`.

    Returns:
        `[prompts, H, rows, d]`.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads == kv_heads:
        return F.scaled_dot_product_attention(query, key, value)
    if query.device.type == "cpu" or query.dtype in (torch.float16, torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    # On a GPU no kernel but that of 16 bits knows grouped heads, and the general one would write
    # the whole matrix.
    return attend_in_a_row(query, key, value)


def attend_in_a_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` by kernels without grouped heads: a group's heads are one head of more rows.

    Without a mask a query's place is nothing to its result.
    """
    group, rows = query.shape[1] // key.shape[1], query.shape[2]
    in_a_row = query.reshape(len(query), key.shape[1], group * rows, query.shape[3])
    mixed = F.scaled_dot_product_attention(in_a_row, key, value)
    return mixed.unflatten(2, (group, rows)).flatten(1, 2)


def _groups(rows: Rows) -> dict[tuple[int, int], list[int]]:
    """Prompts by their numbers of video and text rows."""
    groups: dict[tuple[int, int], list[int]] = {}
    videos, texts = pairwise(rows.video_offsets), pairwise(rows.text_offsets)
    for i, ((a, b), (c, d)) in enumerate(zip(videos, texts, strict=True)):
        groups.setdefault((b - a, d - c), []).append(i)
    return groups


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _normalise_heads_(projected: Tensor, weight: Tensor | None, eps: float) -> None:
    """Normalises the first heads of `[rows, heads*d]` in place, each by a row of `[heads, d]`."""
    if weight is not None:
        heads = projected[:, : weight.numel()].unflatten(1, weight.shape)
        heads.copy_(F.rms_norm(heads, weight.shape[1:], None, eps) * weight)


def _rotate_(
    projected: Tensor, rotation: tuple[Tensor, Tensor], index: Tensor, width: int
) -> None:  # fmt: skip
    """Turns the heads' halves against each other, in place.

    Args:
        projected: `[rows, heads*d]`.
        rotation: Cosines and sines `[S, d/2]`.
        index: `[rows]`, the rows' places in the pack.
        width: `d`.
    """
    cosine, sine = (part.index_select(0, index)[:, None] for part in rotation)
    first, second = projected.unflatten(1, (-1, width)).chunk(2, dim=-1)
    turned = first * sine
    first.mul_(cosine).addcmul_(second, sine, value=-1)
    second.mul_(cosine).add_(turned)


def _blocks(x: Tensor, intermediate: int) -> Iterator[slice]:
    """Blocks of rows for the MLP and the token head."""
    size = CPU_ROWS if x.device.type == "cpu" else max(128, GPU_ELEMENTS // (2 * intermediate))
    for begin in range(0, len(x), size):
        yield slice(begin, min(begin + size, len(x)))


def _normalised(x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[1],), None, eps)


def _gated(x: Tensor, gate_up: Tensor | Float8Weight) -> Tensor:
    gate, up = _product(x, gate_up).chunk(2, dim=1)
    return F.silu(gate, inplace=True).mul_(up)


def _narrowed(head: Head, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer multiplies: its input `[rows, D/16]` and its weight."""
    for weight, bias in head.hidden:
        x = F.silu(F.linear(x, weight, bias), inplace=True)
    return x.to(head.last.dtype), head.last


def _frame_means(x: Tensor, grid: Grid) -> Tensor:
    """`[F, D]`, video by video rather than frame by frame."""
    videos = x.split(list(grid.tokens_per_video))
    means = [
        rows.unflatten(0, (size[0], -1)).mean(1)
        for rows, size in zip(videos, grid.sizes, strict=True)
    ]
    return means[0] if len(means) == 1 else torch.cat(means)


def _product(x: Tensor, weight: Tensor | Float8Weight, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, Float8Weight):
        return float8.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _add_product(x: Tensor, other: Tensor, weight: Tensor | Float8Weight) -> None:
    """`x += other weight^T`."""
    if isinstance(weight, Float8Weight):
        x.add_(float8.linear(other, weight))
    else:
        x.addmm_(other, weight.T)


def _part(weight: Tensor | Float8Weight, begin: int) -> Tensor | Float8Weight:
    """The output channels from `begin` on."""
    if isinstance(weight, Float8Weight):
        return Float8Weight(weight.values[begin:], weight.scale[:, begin:].contiguous())
    return weight[begin:]
