"""The folded form of `SelfAttentionPolicy`: equal to the plain one, and only what is needed."""

from __future__ import annotations

import copy
import dataclasses
from itertools import accumulate, pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cacovid import CompressionSession, Grid, Prompt, SelfAttentionConfig, SelfAttentionPolicy
from cacovid.errors import InvalidInputError
from cacovid.policies import decoder_layer, float8, folded_layer
from cacovid.policies.folded_layer import folded_scores, rows_of
from cacovid.session.recording import Recording
from cacovid.testing.budgets import assert_within_budget

WIDTH = 32

#: Of each prompt of a pack: its videos, and its text before, between and after them.
PACKS = {
    "one": [([(3, 2, 3)], (2, 6))],
    "no text": [([(3, 2, 3)], (0, 0))],
    "two videos": [([(3, 2, 3), (1, 7, 1)], (1, 2, 3))],
    "alike": [([(2, 3, 3)], (2, 5)), ([(2, 3, 3)], (4, 3)), ([(2, 3, 3)], (2, 5))],
    "ragged": [([(3, 2, 3)], (2, 6)), ([(1, 4, 4)], (0, 0)), ([(4, 1, 2), (1, 1, 1)], (3, 0, 9)),
               ([(3, 2, 3)], (1, 7))],
    "one without a video": [([(3, 2, 3)], (2, 6)), ([], (5,)), ([(1, 4, 4)], (1, 1))],
}  # fmt: skip


def pack_of(name, dtype=torch.float64, seed=0):
    """A pack whose text stands where `PACKS` says, at positions that begin anew in each prompt."""
    sizes, is_video, positions, lengths = [], [], [], []
    for videos, texts in PACKS[name]:
        own = [False] * texts[0]
        for (t, h, w), text in zip(videos, texts[1:], strict=True):
            own += [True] * (t * h * w) + [False] * text
        sizes += videos
        is_video += own
        positions += [3 * len(lengths) + place for place in range(len(own))]
        lengths.append(len(own))
    mask = torch.tensor(is_video)
    generator = torch.Generator().manual_seed(seed)
    return Prompt(
        embeds=torch.randn(len(mask), WIDTH, generator=generator, dtype=torch.float64).to(dtype),
        position_ids=torch.tensor(positions),
        video_index=mask.nonzero().flatten(),
        question_index=(~mask).nonzero().flatten(),
        grid=Grid(sizes),
        prompt_offsets=(0, *accumulate(lengths)),
    )


def policy_of(heads=4, kv_heads=2, spread=0.3, **settings):
    torch.manual_seed(0)
    config = SelfAttentionConfig(
        hidden_size=WIDTH, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=48, **settings,
    )  # fmt: skip
    policy = SelfAttentionPolicy(config).requires_grad_(False)
    for name, weight in policy.named_parameters():
        weight.copy_(torch.randn(weight.shape) * spread + ("norm" in name))
    return policy


@pytest.fixture
def folds(monkeypatch):
    """How often a policy's weights were folded."""
    done = []
    real = folded_layer.fold
    monkeypatch.setattr(folded_layer, "fold", lambda *a: done.append(a) or real(*a))
    return done


def assert_close(got, wanted, tolerance=1e-10):
    for mine, other in ((got.token, wanted.token), (got.frame, wanted.frame)):
        assert mine.dtype == other.dtype and float(other.std()) > 1e-3
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [5, 1024])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("pack", PACKS)
def test_folded_equals_plain(pack, heads, rows, monkeypatch, folds):
    monkeypatch.setattr(folded_layer, "CPU_ROWS", rows)
    policy, prompt = policy_of(*heads).double(), pack_of(pack)
    assert_close(policy(prompt), policy.plain(prompt))
    assert len(folds) == 1


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pack", ["one", "no text", "ragged"])
def test_norms_of_heads_and_positions_of_three_axes(pack, interleaved):
    policy = policy_of(
        qkv_bias=False, qk_norm=True, mrope_section=(2, 1, 1), mrope_interleaved=interleaved
    ).double()
    prompt = pack_of(pack)
    one = policy(prompt).token
    generator = torch.Generator().manual_seed(1)
    axes = torch.randint(0, 9, (3, len(prompt.embeds)), generator=generator)
    prompt = dataclasses.replace(prompt, position_ids=axes)
    assert_close(policy(prompt), policy.plain(prompt))
    assert not torch.equal(policy(prompt).token, one)


def test_a_head_size_of_its_own_and_the_video_apart_from_its_places():
    policy, prompt = policy_of(head_size=10).double(), pack_of("ragged")
    assert_close(policy(prompt), policy.plain(prompt))
    # Video tokens need not stand in the order of their places.
    video = prompt.video_index.clone()
    video[:18] = video[:18].flip(0)
    turned = Prompt(
        prompt.embeds, prompt.position_ids, video, prompt.question_index, prompt.grid,
        prompt.prompt_offsets,
    )  # fmt: skip
    assert_close(policy(turned), policy.plain(turned))
    assert not torch.equal(policy(turned).token, policy(prompt).token)


def test_a_pack_out_of_order_is_read_by_the_plain_form(folds):
    prompt = pack_of("alike")
    video = prompt.video_index.view(3, -1)[[1, 0, 2]].flatten()
    turned = Prompt(
        prompt.embeds, prompt.position_ids, video, prompt.question_index, prompt.grid,
        prompt.prompt_offsets,
    )  # fmt: skip
    policy = policy_of().double()
    assert rows_of(turned) is None
    assert_close(policy(turned), policy.plain(turned))
    assert not folds
    order = torch.arange(54).view(3, -1)[[1, 0, 2]].flatten()
    torch.testing.assert_close(policy(turned).token, policy(prompt).token[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pack", ["one", "ragged"])
def test_low_precision_is_within_the_error_budget(pack, dtype):
    for seed in range(4):
        policy, prompt = policy_of(spread=0.15).to(dtype), pack_of(pack, dtype, seed)
        plain, got = policy.plain(prompt), policy(prompt)
        exact = copy.deepcopy(policy).double().plain(prompt)
        assert got.token.dtype == got.frame.dtype == torch.float32
        assert_within_budget(got.token, plain.token, exact.token)
        assert_within_budget(got.frame, plain.frame, exact.frame)


@pytest.mark.parametrize("pack", PACKS)
def test_only_what_a_score_depends_on_is_multiplied(pack):
    policy, prompt = policy_of(), pack_of(pack, torch.float32)

    def in_place(own, left, right, out_shape=None, **_):
        return 2 * left[0] * left[1] * right[1]

    known = {torch.ops.aten.addmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        policy(prompt)
    counts = dict(counter.get_flop_counts()["Global"])
    n, d, kv, inner = prompt.grid.num_tokens, WIDTH, 2 * 2 * 8, 4 * 8
    text, frames = len(prompt.embeds) - n, prompt.grid.num_frames
    head = sum(a * b for a, b in pairwise([d, d // 2, d // 4, d // 8, d // 16]))
    products = n * (d * (inner + kv) + inner * d + 3 * d * 48 + head) + text * d * kv
    names = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
    assert sum(counts.pop(name, 0) for name in names) == 2 * (products + frames * head)
    if counts:  # attention, where this torch counts it: video tokens ask, all rows answer
        offsets = prompt.prompt_offsets
        index = prompt.video_index
        pairs = [int(((index >= a) & (index < b)).sum()) * (b - a) for a, b in pairwise(offsets)]
        assert sum(counts.values()) == 2 * 2 * sum(pairs) * inner


def test_heads_of_a_group_in_a_row():
    torch.manual_seed(0)
    query = torch.randn(2, 5, 6, 8, dtype=torch.float64).transpose(1, 2)
    key, value = (torch.randn(2, 2, 9, 8, dtype=torch.float64) for _ in range(2))
    got = folded_layer.attend_in_a_row(query, key, value)
    torch.testing.assert_close(got, folded_layer.attend(query, key, value))
    one = torch.softmax(query[1, 4] @ key[1, 1].T / 8**0.5, -1) @ value[1, 1]
    torch.testing.assert_close(got[1, 4], one)


def test_weights_are_folded_once_and_again_after_a_change(folds):
    policy, prompt = policy_of().double(), pack_of("one")
    first = policy(prompt).token
    assert torch.equal(policy(prompt).token, first) and len(folds) == 1
    memory = policy.fold()
    places = [memory.qkv.data_ptr(), memory.gate_up.data_ptr(), memory.token.last.data_ptr()]

    def changed():
        before = len(folds)
        assert_close(policy(prompt), policy.plain(prompt))
        assert len(folds) == before + 1

    for name in ("input_layernorm.weight", "self_attn.k_proj.bias", "mlp.up_proj.weight"):
        policy.layers[0].get_parameter(name).mul_(1.5)
        changed()
    policy.token_compress[8].bias.add_(1.0)
    changed()
    policy.load_state_dict({k: v * 0.9 for k, v in policy.state_dict().items()})
    changed()
    now = policy.fold()
    assert [now.qkv.data_ptr(), now.gate_up.data_ptr(), now.token.last.data_ptr()] == places
    other = torch.randn(WIDTH, 48).double()
    policy.layers[0].mlp.down_proj.weight = nn.Parameter(other, requires_grad=False)
    changed()
    policy.layernorm.weight.data.mul_(2.0)  # not seen
    assert len(folds) == 7 and not torch.equal(policy(prompt).token, policy.plain(prompt).token)
    policy.refold()
    changed()
    policy.float()
    assert policy(pack_of("one", torch.float32)).token.dtype == torch.float32
    with torch.inference_mode():
        policy(pack_of("one", torch.float32))  # weights have versions, whatever the mode


@pytest.mark.parametrize("settings", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_an_optimisers_steps_are_seen(settings, folds):
    policy, prompt = policy_of().double(), pack_of("one")
    policy.requires_grad_(True)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=0.1, **settings)
    for _ in range(2):
        loss = policy(prompt).token.square().sum()
        with torch.no_grad():  # between a loss and its step too
            before = policy(prompt).token
        loss.backward()
        optimiser.step()  # the fused one changes no version
        optimiser.zero_grad()
        with torch.no_grad():
            assert_close(policy(prompt), policy.plain(prompt))
            assert float((policy(prompt).token - before).abs().max()) > 0.1
    policy.eval()
    done = len(folds)
    with torch.no_grad():
        assert_close(policy(prompt), policy.plain(prompt))
        policy(prompt)
    assert len(folds) == done + 1  # held again


def test_weights_of_inference_mode_are_folded_at_every_use(folds):
    with torch.inference_mode():
        policy, prompt = policy_of().double(), pack_of("one")
        policy(prompt)
        policy.layernorm.weight.mul_(2.0)
        assert_close(policy(prompt), policy.plain(prompt))
    assert len(folds) == 2


def test_copies_have_folds_of_their_own():
    policy, prompt = policy_of().double(), pack_of("one")
    policy(prompt)
    other = copy.deepcopy(policy)
    other.layers[0].mlp.gate_proj.weight.mul_(2.0)
    assert_close(other(prompt), other.plain(prompt))
    assert_close(policy(prompt), policy.plain(prompt))
    assert not any("fold" in name for name in policy.state_dict())


def test_the_plain_form_answers_where_the_folded_one_cannot(folds):
    policy, prompt = policy_of(), pack_of("one", torch.float32)
    wanted = policy.plain(prompt)
    seen = []
    handle = policy.layers[0].mlp.register_forward_hook(lambda *a: seen.append(a))
    assert torch.equal(policy(prompt).token, wanted.token) and len(seen) == 1
    handle.remove()

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2.0 * super().forward(x)

    own = policy.layers[0].mlp.down_proj
    policy.layers[0].mlp.down_proj = Doubled(48, WIDTH, bias=False).requires_grad_(False)
    assert torch.equal(policy(prompt).token, policy.plain(prompt).token)
    policy.layers[0].mlp.down_proj = own
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy(prompt).token, policy.plain(prompt).token)
    leaf = prompt.embeds.clone().requires_grad_()
    tracked = Prompt(leaf, prompt.position_ids, prompt.video_index, prompt.question_index,
                     prompt.grid)  # fmt: skip
    policy(tracked).token.sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.any())
    assert not folds


def test_a_session_folds_changed_weights_before_it_replays(monkeypatch):
    class Frozen:
        """A recording that computes nothing: as a graph, it cannot look at the weights."""

        def record(self, function, inputs):
            return Recording(lambda: None, function(*inputs))

    monkeypatch.setattr(CompressionSession, "_make_recorder", lambda _: Frozen())
    policy, grid = policy_of(), Grid([(3, 2, 3)])
    session = CompressionSession(policy, grid, retention=0.5)
    inputs = torch.randn(18, WIDTH), torch.randn(5, WIDTH), torch.arange(23)
    for _ in range(3):
        session(*inputs)
    memory = policy.fold().gate_up
    policy.layers[0].post_attention_layernorm.weight.mul_(2.0)
    before = memory.clone()
    session(*inputs)
    torch.testing.assert_close(memory, 2.0 * before)


def test_rows_in_eight_bits():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(9, 64) * torch.logspace(-30, 30, 9)[:, None]).to(dtype)
        x[3] = 0.0
        values, scale = float8.quantise_rows(x)
        assert values.dtype == torch.float8_e4m3fn and scale.shape == (9, 1)
        found = values.float()
        assert bool((found.abs().amax(1)[[0, 1, 2, 4, 5, 6, 7, 8]] == 448).all())
        assert not found[3].any()
        # Half a unit of 3 bits, or of the smallest numbers; in bfloat16 two roundings before that.
        size = x.float().abs()
        allowed = size * 2**-4 + scale * 2**-10
        if dtype == torch.bfloat16:
            allowed = allowed + size * (1 + 2**-4) * 2**-7
        else:
            allowed = allowed + size * 2**-21
        assert bool(((found * scale - x.float()).abs() <= allowed).all())
    x[5, 2] = torch.nan
    assert bool(float8.quantise_rows(x)[0][5].isnan().any())


def emulated(x, weight, bias=None):
    """`float8.linear` from the same 8-bit numbers, in float64."""
    values, scale = float8.quantise_rows(x)
    product = values.double() @ weight.values.double().T * scale * weight.scale
    return product if bias is None else product + bias


@pytest.fixture
def scaled_products():
    """Skips where this torch multiplies 8-bit rows on no CPU."""
    one = torch.ones(16, 16)
    try:
        float8.linear(one.bfloat16(), float8.quantise_weight(one))
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        pytest.skip(f"torch {torch.__version__}: {error}")


@pytest.mark.usefixtures("scaled_products")
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_in_eight_bits_are_those_of_the_quantised_numbers(with_bias):
    torch.manual_seed(0)
    x, bias = torch.randn(37, 96).bfloat16(), torch.randn(48).bfloat16() if with_bias else None
    weight = float8.quantise_weight(torch.randn(48, 96) * torch.logspace(-3, 3, 48)[:, None])
    got, wanted = float8.linear(x, weight, bias), emulated(x, weight, bias)
    assert got.dtype == torch.bfloat16
    # Rounded to bfloat16 twice at the most (before and after the bias); sums in float32.
    size = emulated(x.abs(), float8.Float8Weight(weight.values.float().abs(), weight.scale))
    allowed = wanted.abs() * 2**-8 + size * 2**-8 * with_bias + size * 96 * 2**-24
    assert bool(((got.double() - wanted).abs() <= allowed).all())


@pytest.mark.usefixtures("scaled_products")
@pytest.mark.parametrize("pack", ["one", "ragged"])
def test_the_layer_in_eight_bits(pack):
    policy, prompt = policy_of(spread=0.15).bfloat16(), pack_of(pack, torch.bfloat16)
    weights = folded_layer.fold(policy, True)
    assert isinstance(weights.gate_up, float8.Float8Weight)
    rotation = decoder_layer.half_rotation(prompt.position_ids, policy.config, torch.bfloat16)
    rows = rows_of(prompt)
    got = folded_scores(weights, policy.config, prompt, rows, rotation)
    # The same layer with the weights that 8 bits hold: what is left is the activations' rounding.
    exact = copy.deepcopy(policy).double()
    layer = exact.layers[0]
    held = (weights.qkv.values.double() * weights.qkv.scale.T).split([32, 16, 16])
    for part, value in zip(("q", "k", "v"), held, strict=True):
        layer.self_attn.get_submodule(f"{part}_proj").weight.copy_(value)
    both = (weights.gate_up.values.double() * weights.gate_up.scale.T).chunk(2)
    for part, value in zip(("gate", "up"), both, strict=True):
        layer.mlp.get_submodule(f"{part}_proj").weight.copy_(value)
    layer.input_layernorm.weight.fill_(1.0)
    layer.post_attention_layernorm.weight.fill_(1.0)
    layer.self_attn.o_proj.weight.copy_(weights.output.values.double() * weights.output.scale.T)
    layer.mlp.down_proj.weight.copy_(weights.down.values.double() * weights.down.scale.T)
    near = exact.plain(prompt).token
    far = copy.deepcopy(policy).double().plain(prompt).token
    assert float((got.token - near).norm()) < 0.7 * float((got.token - far).norm())
    assert float(torch.corrcoef(torch.stack((got.token.double(), near)))[0, 1]) > 0.99


def test_eight_bits_are_refused_where_there_are_none(monkeypatch):
    policy = policy_of().bfloat16()
    with pytest.raises(InvalidInputError, match=r"on cpu; .* 9\.0 or more.*use_float8\(False\)"):
        policy.use_float8()
    assert policy.use_float8(False) is policy
    policy(pack_of("one", torch.bfloat16))
    device, widths = torch.device("cuda", 0), {"hidden_size": 32, "intermediate_size": 48}
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    float8.require_float8(device, torch.bfloat16, widths)
    with pytest.raises(InvalidInputError, match=r"in torch\.float32; .* policy\.bfloat16\(\)"):
        float8.require_float8(device, torch.float32, widths)
    with pytest.raises(InvalidInputError, match=r"intermediate_size is 40; .* multiples of 16"):
        float8.require_float8(device, torch.bfloat16, {**widths, "intermediate_size": 40})
    capability[0] = (8, 0)
    with pytest.raises(InvalidInputError, match=r"a device has compute capability 8\.0"):
        float8.require_float8(device, torch.bfloat16, widths)
    monkeypatch.delattr(torch, "_scaled_mm")
    with pytest.raises(InvalidInputError, match="no scaled products"):
        float8.require_float8(device, torch.bfloat16, widths)


def test_a_policy_in_eight_bits_is_refused_on_another_device():
    policy = policy_of().bfloat16()
    policy._in_float8 = True  # as after a move back from a GPU
    with pytest.raises(InvalidInputError, match="the policy is on cpu"):
        policy(pack_of("one", torch.bfloat16))
