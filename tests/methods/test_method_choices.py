"""What each method keeps: worked examples, and properties over random packed grids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid import methods
from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Prompt, Scores

KEY = "received_attention/1/last"

#: Methods that read no features; the others have properties of their own file.
WITHOUT_FEATURES = ("attention", "random", "uniform")


def make_prompt(sizes, scores=None) -> Prompt:
    grid = Grid(sizes)
    total = grid.num_tokens
    extras = {} if scores is None else {KEY: scores}
    return Prompt(
        embeds=torch.zeros(total + 2, 4),
        position_ids=torch.arange(total + 2),
        video_index=torch.arange(total),
        question_index=torch.arange(total, total + 2),
        grid=grid,
        extras=extras,
    )


@st.composite
def batches(draw):
    """Sizes, a retention per video, and scores with many ties."""
    size = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
    sizes = draw(st.lists(size, min_size=1, max_size=4))
    retentions = draw(st.lists(st.floats(0.01, 1.0), min_size=len(sizes), max_size=len(sizes)))
    total = Grid(sizes).num_tokens
    scores = draw(st.lists(st.integers(-3, 3), min_size=total, max_size=total))
    return sizes, retentions, torch.tensor(scores, dtype=torch.float32)


@pytest.mark.parametrize("name", WITHOUT_FEATURES)
@settings(max_examples=40, deadline=None)
@given(batch=batches(), seed=st.integers(0, 2**64 - 1))
def test_exact_count_ascending_and_each_video_as_alone(name, batch, seed):
    sizes, retentions, scores = batch
    method = methods.get(name)
    prompt = make_prompt(sizes, scores)
    selection = method(prompt, retentions, seed=seed)
    assert selection.counts == prompt.grid.budgets(retentions)
    keep = selection.keep
    assert keep.dtype == torch.int64
    assert bool((keep[1:] > keep[:-1]).all())
    offsets = prompt.grid.host_video_offsets
    for index, (begin, end) in enumerate(itertools.pairwise(offsets)):
        inside = keep[(keep >= begin) & (keep < end)]
        assert inside.numel() == selection.counts[index]
        alone = method(make_prompt([sizes[index]], scores[begin:end]), retentions[index], seed=seed)
        assert (inside - begin).tolist() == alone.keep.tolist()


@pytest.mark.parametrize("name", WITHOUT_FEATURES)
def test_keep_all_and_fewest(name):
    prompt = make_prompt([(2, 3, 3), (1, 2, 2)], torch.arange(22.0))
    method = methods.get(name)
    assert method(prompt, 1.0).keep.tolist() == list(range(22))
    assert method(prompt, 1e-6).counts == (1, 1)


@pytest.mark.parametrize("name", WITHOUT_FEATURES)
@pytest.mark.parametrize("retention", [0.0, -0.1, 1.5, float("nan")])
def test_retention_outside_its_range_is_refused(name, retention):
    prompt = make_prompt([(1, 2, 2)], torch.zeros(4))
    with pytest.raises(InvalidInputError, match="retention"):
        methods.get(name)(prompt, retention)


def test_random_is_the_same_on_every_machine():
    # Written down from the recipe with a Philox of its own (numpy integers): 2 frames of 6
    # tokens, seed 7, the five smallest words.
    keep = methods.get("random")(make_prompt([(2, 2, 3)]), 5 / 12, seed=7).keep.tolist()
    assert keep == philox_choice(frames=2, tokens=6, count=5, seed=7)


def philox_choice(frames: int, tokens: int, count: int, seed: int) -> list[int]:
    """The recipe of `random` in Python integers, independent of the library."""
    words = []
    for frame in range(frames):
        for token in range(tokens):
            c = [(token >> 2) | (3 << 24), frame, 0, 0]
            k = [seed & 0xFFFFFFFF, seed >> 32]
            for _ in range(10):
                p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
                c = [
                    (p1 >> 32) ^ c[1] ^ k[0],
                    p1 & 0xFFFFFFFF,
                    (p0 >> 32) ^ c[3] ^ k[1],
                    p0 & 0xFFFFFFFF,
                ]
                k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
            words.append((c[token & 3], frame * tokens + token))
    return sorted(index for _, index in sorted(words)[:count])


def test_random_keeps_every_token_equally_often_and_seeds_differ():
    prompt = make_prompt([(2, 2, 5)])
    method = methods.get("random")
    kept = torch.zeros(20)
    for seed in range(800):
        kept[method(prompt, 0.25, seed=seed).keep] += 1
    # Binomial(800, 1/4): standard deviation 12.2; five of them.
    assert bool(((kept - 200).abs() < 62).all()), kept
    assert method(prompt, 0.25, seed=1).keep.tolist() != method(prompt, 0.25, seed=2).keep.tolist()


def test_random_is_nested_over_retentions():
    prompt = make_prompt([(3, 4, 4)])
    few = set(methods.get("random")(prompt, 0.1, seed=3).keep.tolist())
    many = set(methods.get("random")(prompt, 0.5, seed=3).keep.tolist())
    assert few < many


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 4, [0, 3, 6, 9]),
        (10, 1, [0]),
        (1, 1, [0]),
        # j*9/2 = 0, 4.5, 9: the half goes to the even 4.
        (10, 3, [0, 4, 9]),
        # j*11/2 = 5.5 goes to 6.
        (12, 3, [0, 6, 11]),
        (7, 7, list(range(7))),
    ],
)
def test_uniform_positions_by_hand(total, count, expected):
    assert methods.even_positions(total, count).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), total=st.integers(1, 3000))
def test_uniform_positions_equal_pythons_exact_rounding(data, total):
    count = data.draw(st.integers(1, total))
    expected = (
        [0] if count == 1 else [round(Fraction(j * (total - 1), count - 1)) for j in range(count)]
    )
    assert methods.even_positions(total, count).tolist() == expected
    assert len(set(expected)) == count


def test_uniform_positions_on_a_long_video_are_exact():
    total, count = 200_704, 20_070
    positions = methods.even_positions(total, count)
    assert positions[0] == 0 and positions[-1] == total - 1
    assert int(positions[7]) == round(7 * (total - 1) / (count - 1))
    assert bool((positions.diff() > 0).all())


def test_top_k_by_hand():
    scores = torch.tensor([1.0, 5.0, 5.0, 0.0, -0.0, 2.0, 9.0, 9.0])
    selection = methods.top_k(scores, [(1, 1, 5), (1, 1, 3)], [0.8, 0.4])
    # First video: 5, 5, 1 and the earlier of the two zeros. Second: one of the nines, the first.
    assert selection.keep.tolist() == [0, 1, 2, 3, 6]
    assert selection.counts == (4, 1)


def test_top_k_takes_infinities_and_refuses_nan_and_wrong_shapes():
    infinite = torch.tensor([float("-inf"), 0.0, float("inf")])
    assert methods.top_k(infinite, [(1, 1, 3)], 0.67).keep.tolist() == [1, 2]
    with pytest.raises(InvalidInputError, match="NaN"):
        methods.top_k(torch.tensor([0.0, float("nan")]), [(1, 1, 2)], 0.5)
    with pytest.raises(InvalidInputError, match=r"\[3\]"):
        methods.top_k(torch.zeros(2), [(1, 1, 3)], 0.5)
    with pytest.raises(InvalidInputError, match="floating"):
        methods.top_k(torch.zeros(3, dtype=torch.int64), [(1, 1, 3)], 0.5)


def test_attention_keeps_what_is_attended_to():
    received = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    prompt = make_prompt([(1, 2, 2)], received)
    method = methods.get("attention")
    selection, scores = methods.score_and_select(method, prompt, 0.5)
    assert selection.keep.tolist() == [1, 3]
    assert scores is not None and scores.token.dtype == torch.float32 and scores.frame is None
    assert method.needs == {KEY} and method.question_aware


def test_attention_without_its_extras_says_what_to_do():
    with pytest.raises(InvalidInputError, match=r"received_attention/1/last.*needs=method.needs"):
        methods.get("attention")(make_prompt([(1, 2, 2)]), 0.5)


@dataclass(frozen=True)
class ShareConfig:
    policy_share: float


class BrightTokens:
    """A policy that scores a token by the sum of its row."""

    config = ShareConfig(policy_share=1.0)
    question_aware = False

    def __call__(self, prompt: Prompt) -> Scores:
        rows = prompt.video_embeds.requires_grad_().sum(dim=1)
        frames = rows.view(prompt.grid.num_frames, -1).mean(dim=1)
        return Scores(rows, frames)


def test_a_policy_becomes_a_method():
    embeds = torch.zeros(10, 4)
    embeds[torch.tensor([1, 2, 7]), 0] = torch.tensor([3.0, 2.0, 4.0])
    prompt = Prompt(
        embeds, torch.arange(10), torch.arange(8), torch.arange(8, 10), Grid([(2, 2, 2)])
    )
    method = methods.PolicyMethod(BrightTokens(), max_frame_ratio=1.0, name="bright")
    assert (method.name, method.question_aware, method.needs) == ("bright", False, frozenset())
    selection, scores = methods.score_and_select(method, prompt, 3 / 8)
    assert selection.keep.tolist() == [1, 2, 7] and selection.counts == (3,)
    assert scores is not None and not scores.token.requires_grad
    assert torch.equal(method(prompt, 3 / 8).keep, selection.keep)


def test_the_policys_own_share_is_used_unless_another_is_given():
    assert methods.PolicyMethod(BrightTokens()).policy_share == 1.0
    assert methods.PolicyMethod(BrightTokens(), policy_share=0.0).policy_share == 0.0
    assert methods.PolicyMethod(lambda prompt: Scores(prompt.embeds[:, 0])).policy_share == 0.5
