"""What the methods inside the language model decide, layer by layer, on examples by hand."""

from __future__ import annotations

import warnings

import pytest
import torch

from cacovid import methods
from cacovid.errors import InvalidInputError
from cacovid.methods.framefusion import means_of_runs, merges

INSIDE = ["fastv", "framefusion"]


def hidden_of(prompt):
    return prompt.embeds.clone()


def test_fastv_keeps_what_layer_two_is_attended_for(make):
    prompt = make.pack([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 4)])
    hook = methods.get("fastv")(prompt, 0.75)
    # Rows: one of text, six tokens, one of text. Of 4 layers 2 run on 6 tokens; the others may run
    # on (0.75 * 4 * 6 - 12) / 2 = 3.
    received = torch.tensor([9.0, 0.1, 0.3, 0.3, 0.0, 0.5, 0.2, 9.0])
    hook.begin(4)
    hidden = hidden_of(prompt)
    assert hook.before(0, hidden, None) is None
    assert hook.before(1, hidden, lambda: received) is None
    with pytest.raises(InvalidInputError, match="no prompt was read"):
        hook.selection  # noqa: B018
    reduced = hook.before(2, hidden, lambda: received)
    assert reduced.rows.tolist() == [0, 2, 3, 5, 7]
    assert hook.before(3, reduced.hidden, lambda: received[reduced.rows]) is None
    assert hook.selection.keep.tolist() == [1, 2, 4] and hook.counts == (3,)
    assert hook.tokens_per_layer == [6, 6, 3, 3] and hook.layer_average == 0.75


def test_fastv_where_the_first_layers_use_the_budget_up(make):
    prompt = make.pack([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 4)])
    hook = methods.get("fastv")(prompt, 0.5)
    hook.begin(4)
    hidden, received = hidden_of(prompt), torch.arange(8.0)
    for layer in (0, 1):
        hook.before(layer, hidden, lambda: received)
    # (0.5 * 4 * 6 - 12) / 2 = 0: three tokens go on, and it says so.
    assert hook.before(2, hidden, lambda: received).rows.tolist() == [0, 4, 5, 6, 7]
    with pytest.warns(RuntimeWarning, match=r"75\.0% of the video tokens"):
        hook.before(3, hidden[:5], lambda: received[:5])
    assert hook.selection.keep.tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("retention", "kept"), [(0.0714, 71), (0.0715, 1), (0.072, 1), (0.0732, 1), (0.1, 30)]
)
def test_fastv_keeps_one_token_where_less_than_one_is_left_for_a_layer(make, retention, kept):
    # Of 28 layers two run on 1000 tokens: 28 r * 1000 - 2000 are left for 26 layers.
    prompt = make.pack([torch.zeros(10, 10, 10, 2)], [torch.zeros(1, 2)])
    hook = methods.get("fastv")(prompt, retention)
    hook.begin(28)
    for layer in range(3):
        hook.before(layer, prompt.embeds, lambda: torch.zeros(1002))
    assert hook.counts_now == [kept]


def test_fastv_in_a_model_of_too_few_layers(make):
    prompt = make.pack([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 4)])
    with pytest.raises(InvalidInputError, match="the model has 2"):
        methods.get("fastv")(prompt, 0.5).begin(2)
    for wrong in ("fastv:0", "fastv:x"):
        with pytest.raises(InvalidInputError, match="at least 1"):
            methods.get(wrong)


def test_framefusion_merges_then_prunes(make):
    a, b, c = [1.0, 0.0], [3.0, 0.0], [0.0, 1.0]
    video = torch.tensor([a, c, b, a, a, c]).view(3, 1, 2, 2)
    prompt = make.pack([video], [torch.zeros(1, 2)])
    hook = methods.get("framefusion")(prompt, 0.5)
    hook.begin(2)
    # The first place does not turn: its frames 1 and 2 merge into frame 0, mean (5/3, 0). The
    # second turns by right angles. Two of six merge, so that merging goes on.
    reduced = hook.before(0, hidden_of(prompt), None)
    assert reduced.rows.tolist() == [0, 1, 2, 4, 6, 7]
    assert reduced.hidden[1].tolist() == pytest.approx([5 / 3, 0.0])
    assert reduced.hidden[2:5].tolist() == [c, a, c]
    # Nothing merges any more: pruned to (0.5 * 2 * 6 - 4) / 1 = 2 by attention.
    received = torch.tensor([5.0, 0.2, 0.1, 0.4, 0.3, 5.0])
    last = hook.before(1, reduced.hidden, lambda: received)
    assert last.rows.tolist() == [0, 3, 4, 5]
    assert hook.selection.keep.tolist() == [3, 5]
    assert hook.tokens_per_layer == [4, 2] and hook.layer_average == 0.5


def test_framefusion_merges_no_more_than_the_budget_asks_for(make):
    video = torch.ones(4, 1, 2, 2)
    prompt = make.pack([video], [torch.zeros(1, 2)])
    hook = methods.get("framefusion")(prompt, 0.75)
    hook.begin(3)
    # All are alike; two of eight have to go: the first in order of place and frame.
    reduced = hook.before(0, hidden_of(prompt), None)
    assert hook.counts_now == [6] and reduced.rows.tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    for layer in (1, 2):
        assert hook.before(layer, reduced.hidden, lambda: torch.zeros(8)) is None
    assert hook.layer_average == 0.75


@pytest.fixture
def merging_without_end(monkeypatch):
    """An eighth of what is left merges before every layer, in videos of more than 16 tokens."""

    def an_eighth(rows, place, most):
        into = torch.zeros(len(rows), dtype=torch.bool)
        if len(rows) > 16:
            into[1 : 1 + min(most, -(-len(rows) // 8))] = True
        return into

    monkeypatch.setattr("cacovid.methods.framefusion.merges", an_eighth)


@pytest.mark.parametrize(("depth", "retention"), [(28, 0.1), (7, 0.5), (28, 0.5)])
def test_framefusion_prunes_in_time(depth, retention, make, merging_without_end):
    video = torch.ones(64, 1, 8, 2)
    hook = methods.get("framefusion")(make.pack([video], [torch.zeros(1, 2)]), retention)
    hook.begin(depth)
    rows = hook.length
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer in range(depth):
            received = torch.arange(float(rows))
            given = None if layer == 0 else (lambda values=received: values)
            reduced = hook.before(layer, torch.ones(rows, 2), given)
            rows = rows if reduced is None else len(reduced.rows)
    assert 0.9 * retention < hook.layer_average <= retention


def test_framefusion_prunes_each_video_when_its_own_merging_ends(make, merging_without_end):
    prompt = make.pack(
        [torch.ones(4, 1, 4, 2), torch.ones(64, 1, 8, 2)], [torch.zeros(1, 2), torch.zeros(0, 2)]
    )
    alone = type(prompt)(
        prompt.embeds, prompt.position_ids, prompt.video_index, prompt.question_index, prompt.grid
    )
    hook = methods.get("framefusion")(alone, 0.5)
    hook.begin(6)
    reduced = hook.before(0, alone.embeds, None)
    assert hook.counts_now == [16, 448]  # nothing of the first merges, so that merging ends
    hook.before(1, reduced.hidden, lambda: torch.arange(float(len(reduced.rows))))
    assert hook.counts_now == [(3 * 16 - 16) // 5, 392]


def test_merging_pieces():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0], [0.1, 2.0]])
    place = torch.tensor([0, 0, 0, 1, 1])
    # 2 to 3 are alike but at two places.
    into = merges(rows, place, 5)
    assert into.tolist() == [False, True, False, False, True]
    assert merges(rows, place, 1).tolist() == [False, False, False, False, True]
    expected = torch.tensor([[1.0, 0.05], [1.0, 0.1], [0.0, 1.0], [0.05, 2.0], [0.1, 2.0]])
    torch.testing.assert_close(means_of_runs(rows, into), expected)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.6, [0.5, 0.9], 1.0])
def test_the_layers_keep_to_the_budget_or_say_so(name, retention, make):
    prompt = make.random_prompt([(6, 3, 4), (4, 2, 2)], [1, 2])
    alone = type(prompt)(
        prompt.embeds, prompt.position_ids, prompt.video_index, prompt.question_index, prompt.grid
    )
    hook = methods.get(name)(alone, retention)
    depth, hidden = 6, alone.embeds
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hook.begin(depth)
        for layer in range(depth):
            received = torch.rand(len(hidden), generator=generator)
            given = None if layer == 0 else (lambda values=received: values)
            reduced = hook.before(layer, hidden, given)
            hidden = hidden if reduced is None else reduced.hidden
    selection = hook.selection
    assert len(hidden) == hook.length - hook.grid.num_tokens + sum(hook.counts)
    assert bool((selection.keep.diff() > 0).all())
    ends = torch.tensor(hook.grid.host_video_offsets)[1:]
    videos = torch.bincount(torch.searchsorted(ends, selection.keep, right=True), minlength=2)
    assert tuple(videos.tolist()) == hook.counts
    most = sum(r * t for r, t in zip(hook.ratios, hook.grid.tokens_per_video, strict=True))
    over = sum(hook.tokens_per_layer) > depth * most + 1e-6
    assert over <= bool(caught)
    if retention == 1.0:
        assert hook.counts == hook.grid.tokens_per_video and not caught


def test_several_prompts_in_one_are_refused(make):
    prompt = make.random_prompt([(2, 2, 2), (2, 2, 2)], [1, 2])
    for name in INSIDE:
        with pytest.raises(InvalidInputError, match="one prompt at a time"):
            methods.get(name)(prompt, 0.5)
