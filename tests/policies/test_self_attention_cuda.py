"""`SelfAttentionPolicy` on a GPU: grouped heads, 8-bit products, and both in a CUDA graph."""

from __future__ import annotations

import copy

import pytest
import torch

from cacovid import Grid, Prompt, SelfAttentionConfig, SelfAttentionPolicy
from cacovid.policies import decoder_layer, float8, folded_layer
from cacovid.policies.folded_layer import folded_scores, rows_of
from cacovid.testing.budgets import assert_within_budget

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
#: Scaled products came with Hopper.
HOPPER = pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() < (9, 0)
    or not hasattr(torch, "_scaled_mm"),
    reason="needs a GPU of compute capability 9.0 or more, and a torch with scaled products",
)
WIDTH = 256


def policy_of(**settings):
    """Of a small model's proportions: heads of 64, four query heads to each of keys."""
    torch.manual_seed(0)
    shape = {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_size": 64,
        "intermediate_size": 512,
    }
    policy = SelfAttentionPolicy(SelfAttentionConfig(hidden_size=WIDTH, **{**shape, **settings}))
    policy.requires_grad_(False)
    for name, weight in policy.named_parameters():
        weight.copy_(torch.randn(weight.shape) * 0.06 + ("norm" in name))
    return policy.cuda().eval()


def prompt_of(dtype, seed=0, grid=((8, 14, 14), (3, 7, 9)), text=37, axes=1):
    """One prompt of two videos on the GPU, text before and behind them."""
    sizes = Grid(list(grid))
    generator = torch.Generator().manual_seed(seed)
    n, total = sizes.num_tokens, sizes.num_tokens + text
    embeds = torch.randn(total, WIDTH, generator=generator, dtype=torch.float64)
    places = torch.arange(total)
    positions = places if axes == 1 else torch.stack((places, places // 14, places % 14))
    return Prompt(
        embeds=embeds.to("cuda", dtype),
        position_ids=positions.cuda(),
        video_index=places[5 : 5 + n].cuda(),
        question_index=torch.cat((places[:5], places[5 + n :])).cuda(),
        grid=sizes,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (4, 1)])
def test_scores_are_within_the_error_budget(heads, dtype):
    """Grouped heads too: by the kernel of 16 bits, or in a row for float32."""
    settings = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    policy, prompt = policy_of(**settings).to(dtype), prompt_of(dtype)
    plain, got = policy.plain(prompt), policy(prompt)
    exact = copy.deepcopy(policy).double().plain(prompt)
    assert got.token.is_cuda and got.token.dtype == got.frame.dtype == torch.float32
    assert_within_budget(got.token, plain.token, exact.token)
    assert_within_budget(got.frame, plain.frame, exact.frame)


@pytest.mark.parametrize("interleaved", [False, True])
def test_norms_of_heads_and_positions_of_three_axes(interleaved):
    policy = policy_of(
        qkv_bias=False, qk_norm=True, mrope_section=(8, 12, 12), mrope_interleaved=interleaved
    ).bfloat16()
    prompt = prompt_of(torch.bfloat16, axes=3)
    exact = copy.deepcopy(policy).double().plain(prompt)
    assert_within_budget(policy(prompt).token, policy.plain(prompt).token, exact.token)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_with_a_groups_heads_in_a_row(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, rows, heads, 64, generator=generator, dtype=torch.float64)
        .to("cuda", dtype)
        .transpose(1, 2)  # as the projection leaves them: rows before heads
        for rows, heads in ((301, 8), (333, 2), (333, 2))
    )
    got = folded_layer.attend_in_a_row(query, key, value)
    assert got.shape == query.shape and got.dtype == dtype

    def by_hand(precision):
        q, k, v = (t.to(precision) for t in (query, key, value))
        k, v = (t.repeat_interleave(4, dim=1) for t in (k, v))
        return torch.softmax(q @ k.transpose(2, 3) / 8.0, dim=-1) @ v

    assert_within_budget(got, by_hand(dtype), by_hand(torch.float64))
    attended = folded_layer.attend(query, key, value)
    assert_within_budget(attended, by_hand(dtype), by_hand(torch.float64))


@HOPPER
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 63, 196, 1000])
def test_products_in_eight_bits_are_those_of_the_quantised_numbers(rows, with_bias):
    torch.manual_seed(0)
    x = torch.randn(rows, WIDTH, device="cuda").bfloat16()
    bias = torch.randn(48, device="cuda").bfloat16() if with_bias else None
    spread = torch.logspace(-3, 3, 48, device="cuda")[:, None]
    weight = float8.quantise_weight(torch.randn(48, WIDTH, device="cuda") * spread)
    values, scale = float8.quantise_rows(x)
    left, right = values.float() * scale, weight.values.float() * weight.scale.T
    left, right = left.double(), right.double()
    wanted, size = left @ right.T, left.abs() @ right.abs().T
    if bias is not None:
        wanted = wanted + bias.double()
    got = float8.linear(x, weight, bias)
    assert got.dtype == torch.bfloat16
    # Two roundings to bfloat16 at the most, and sums whose parts keep 14 bits on Hopper.
    allowed = wanted.abs() * 2**-8 + size * 2**-8 * with_bias + size * 2**-10
    assert bool(((got.double() - wanted).abs() <= allowed).all())


@HOPPER
def test_the_layer_in_eight_bits():
    """Near the policy's own scores, not equal to them; and back again."""
    policy, prompt = policy_of().bfloat16(), prompt_of(torch.bfloat16)
    own = policy(prompt).token
    assert policy.use_float8() is policy
    assert isinstance(policy.fold().gate_up, float8.Float8Weight)
    got = policy(prompt).token
    assert not torch.equal(got, own) and bool(got.isfinite().all())
    assert float(torch.corrcoef(torch.stack((got, own)))[0, 1]) > 0.98
    assert torch.equal(policy(prompt).token, got)
    assert torch.equal(policy.use_float8(False)(prompt).token, own)


@pytest.mark.parametrize("in_float8", [False, pytest.param(True, marks=HOPPER)])
def test_a_graph_gives_the_same_scores_and_waits_for_nothing(in_float8):
    policy = policy_of(mrope_section=(8, 12, 12)).bfloat16()
    if in_float8:
        policy.use_float8()
    static, other = (prompt_of(torch.bfloat16, seed, axes=3) for seed in (0, 1))

    def work():
        weights = policy.fold()
        rotation = decoder_layer.half_rotation(static.position_ids, policy.config, torch.bfloat16)
        return folded_scores(weights, policy.config, static, rows_of(static), rotation)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for prompt in (static, other):
        static.embeds.copy_(prompt.embeds)
        graph.replay()
        wanted = policy(prompt)
        assert torch.equal(captured.token, wanted.token)
        assert torch.equal(captured.frame, wanted.frame)
