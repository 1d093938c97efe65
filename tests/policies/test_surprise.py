"""`SurprisePolicy`: the formula, its folded form, what it does not see, and its storage."""

from __future__ import annotations

import math

import pytest
import torch

from cacovid import Grid, Prompt, SurpriseConfig, SurprisePolicy, load_policy, ops
from cacovid.errors import InvalidInputError, WrongBaseModelError
from cacovid.methods import PolicyMethod, top_k
from cacovid.testing.budgets import assert_within_budget
from cacovid.train.packing import pack_prompts, split_scores

SIZES = [(3, 2, 3), (1, 4, 4), (4, 1, 2)]


def prompt_of(sizes, width=24, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    grid = Grid(sizes)
    total = 2 + grid.num_tokens + 4
    return Prompt(
        embeds=torch.randn(total, width, generator=generator, dtype=dtype),
        position_ids=torch.arange(total),
        video_index=torch.arange(2, 2 + grid.num_tokens),
        question_index=torch.arange(2 + grid.num_tokens, total),
        grid=grid,
    )


def small(**settings):
    settings = {"hidden_size": 24, "width": 20, "inner_width": 7, **settings}
    policy = SurprisePolicy(SurpriseConfig(**settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in policy.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
    return policy


def test_the_score_is_the_formula_written_out():
    policy = small().double()
    prompt = prompt_of([(3, 2, 3)])
    w = dict(policy.named_parameters())
    x = prompt.video_embeds
    x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * w["norm.weight"]

    def silu(value):
        return value / (1 + (-value).exp())

    for i in (0, 5, 6, 11, 17):
        before = x[i - 6] if i >= 6 else torch.zeros_like(x[i])
        state = torch.cat((x[i], x[i] - before))
        hidden = silu(w["first.weight"] @ state + w["first.bias"])
        hidden = silu(w["second.weight"] @ hidden + w["second.bias"])
        expected = w["last.weight"] @ hidden + w["last.bias"]
        torch.testing.assert_close(policy.plain(prompt).token[i : i + 1], expected)


@pytest.mark.parametrize("settings", [{}, {"surprise": False}, {"score_bound": 2.0}])
def test_folded_equals_plain_with_its_gradients(settings):
    policy = small(**settings).double()
    prompt = prompt_of(SIZES)
    results = []
    for form in (policy.plain, policy):
        policy.zero_grad()
        scores = form(prompt)
        (scores.token * torch.arange(len(scores.token))).sum().backward()
        gradients = [value.grad.clone() for value in policy.parameters()]
        assert scores.frame is None and all(bool(g.any()) for g in gradients)
        results.append([scores.token.detach(), *gradients])
    assert float(results[0][0].std()) > 0.05
    for plain, folded in zip(*results, strict=True):
        torch.testing.assert_close(plain, folded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_form_is_within_the_error_budget(dtype):
    policy = small(width=128, inner_width=32).requires_grad_(False)
    prompt = prompt_of([(5, 7, 9), (1, 2, 2)], dtype=torch.float32, seed=4)
    prompt = Prompt(
        prompt.embeds.to(dtype), prompt.position_ids, prompt.video_index, prompt.question_index,
        prompt.grid,
    )  # fmt: skip
    got = policy(prompt).token
    low = prompt.video_embeds
    fold = policy.fold()
    columns = (low @ fold.columns.to(dtype)).float()
    # The plain formula in that precision: the product in it, everything else in float32.
    factor = torch.rsqrt(low.float().square().mean(1, keepdim=True) + 1e-6)
    plain = _rest(policy, columns * factor, prompt.grid)
    exact = policy.double().plain(
        Prompt(low.double(), torch.arange(len(low)), torch.arange(len(low)), torch.tensor([0]),
               prompt.grid)
    ).token  # fmt: skip
    assert got.dtype == torch.float32
    assert_within_budget(got, plain, exact)


def _rest(policy, z, grid):
    width = policy.config.width
    own, moved = z[:, 1 : 1 + width], z[:, 2 + width : 2 + 2 * width]
    parts = []
    counts = list(grid.tokens_per_video)
    for a, b, (_, h, w) in zip(own.split(counts), moved.split(counts), grid.sizes, strict=True):
        before = torch.cat((torch.zeros(h * w, width), b))[: len(b)]
        parts.append(a + b - before)
    hidden = torch.nn.functional.silu(torch.cat(parts) + policy.first.bias)
    return policy.last(torch.nn.functional.silu(policy.second(hidden)))[:, 0]


def test_a_pack_equals_one_by_one_and_no_question_is_read():
    policy = small().double()
    prompts = [prompt_of([size], seed=i) for i, size in enumerate(SIZES)]
    with torch.no_grad():
        together = split_scores(policy(pack_prompts(prompts)), prompts)
        for prompt, packed in zip(prompts, together, strict=True):
            torch.testing.assert_close(packed.token, policy(prompt).token)
            other = prompt.embeds.clone()
            other[prompt.question_index] += 1.0
            changed = Prompt(
                other, prompt.position_ids, prompt.video_index, prompt.question_index, prompt.grid
            )
            assert torch.equal(policy(changed).token, policy(prompt).token)
    assert policy.question_aware is False


def test_a_still_video_surprises_in_its_first_frame_only():
    policy = small()
    frame = torch.randn(6, 24)
    rows = frame.repeat(4, 1)
    prompt = Prompt(rows, torch.arange(24), torch.arange(24), torch.tensor([0]), Grid([(4, 2, 3)]))
    with torch.no_grad():
        first, *rest = policy(prompt).token.view(4, 6)
    assert all(torch.allclose(later, rest[0], atol=1e-5) for later in rest)
    assert not torch.allclose(first, rest[0], atol=1e-2)


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_training_starts_near_the_initial_probability(keep):
    torch.manual_seed(0)
    policy = SurprisePolicy(SurpriseConfig(hidden_size=64, initial_keep=keep))
    with torch.no_grad():
        p = torch.sigmoid(policy(prompt_of([(8, 6, 6)], width=64, dtype=torch.float32)).token)
    assert abs(float(p.mean()) - keep) < 0.08


def test_one_top_k_over_the_whole_video_is_kept():
    policy = small()
    prompt = prompt_of(SIZES, dtype=torch.float32)
    method = PolicyMethod(policy)
    assert method.name == "score" and method.question_aware is False
    selection = method(prompt, 0.3)
    assert selection.counts == prompt.grid.budgets(0.3)
    assert torch.equal(selection.keep, top_k(policy(prompt).token, prompt.grid, 0.3).keep)
    by_frames = ops.select_tokens(policy(prompt).token, None, prompt.grid, 0.3, policy_share=1.0)
    assert not torch.equal(selection.keep, by_frames)


def test_stored_and_read_back(tmp_path):
    policy = small(base_model="owner/base", surprise=False).eval()
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path, base_model="owner/base", hidden_size=24)
    assert type(again) is SurprisePolicy and again.config == policy.config
    prompt = prompt_of(SIZES, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(prompt).token, policy(prompt).token)
    with pytest.raises(WrongBaseModelError, match="hidden size 8"):
        policy(prompt_of(SIZES, width=8))


def test_wrong_settings():
    for settings, message in (
        ({"inner_width": 21}, "inner_width is 21 and width 20"),
        ({"initial_keep": 1.0}, "initial_keep is 1.0"),
        ({"initial_keep": math.nan}, "initial_keep is nan"),
        ({"width": 0}, "width is 0"),
        ({"score_bound": 0.0}, "score_bound is 0.0"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            small(**settings)


def test_a_session_keeps_the_same_top_k():
    from cacovid import CompressionSession

    policy = small()
    prompt = prompt_of(SIZES, dtype=torch.float32)
    expected = PolicyMethod(policy)(prompt, 0.3).keep
    session = CompressionSession(policy, SIZES, retention=0.3, device="cpu")
    places = torch.arange(prompt.grid.num_tokens)
    pruned = session(prompt.video_embeds, prompt.question_embeds, places)
    assert torch.equal(pruned.keep, expected)
    assert torch.equal(pruned.embeds, prompt.video_embeds[expected])
    assert torch.equal(pruned.position_ids, expected)
    broken = prompt.video_embeds.clone()
    broken[3] = math.nan
    with pytest.raises(InvalidInputError, match="scores have NaN"):
        session(broken, prompt.question_embeds, places)


@pytest.mark.parametrize("bound", [None, 3.0])
def test_weights_in_half_precision_give_scores_in_float32(bound):
    policy = small(score_bound=bound)
    prompt = prompt_of(SIZES, dtype=torch.float32)
    expected = policy.plain(prompt).token
    policy.to(torch.bfloat16)
    with torch.no_grad():
        for scores in (policy(prompt), policy.plain(prompt)):
            assert scores.token.dtype == torch.float32
            assert not torch.equal(scores.token, scores.token.bfloat16().float())
            assert float((scores.token - expected).abs().max()) < 0.1 * float(expected.abs().max())
    fold = policy.fold()
    folded_weights = (fold.columns, fold.values, *fold.token, *fold.frame)
    assert {weight.dtype for weight in folded_weights} == {torch.float32}
