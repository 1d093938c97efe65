"""What holds of every method: the exact budget, order, batches, determinism."""

from __future__ import annotations

import pytest
import torch

from cacovid import methods

SIZES = [(6, 3, 4), (3, 2, 2), (1, 4, 4), (9, 4, 5)]
SEEDS = [11, 12, 13, 14]
RETENTIONS = [0.3, 0.5, 0.2, 0.1]

#: Policies stored beside a model; `test_policies_beside.py` tests them.
BESIDE = {"cacovid", "hybrid", "score"}
#: Methods that choose before the LLM; the others return a hook and are tested on a model.
BEFORE = [
    name
    for name in methods.names()
    if name not in BESIDE and not getattr(methods.get(name), "inside", False)
]

pytestmark = pytest.mark.parametrize("name", BEFORE)


@pytest.fixture
def prompt(make):
    return make.random_prompt(SIZES, SEEDS)


@pytest.mark.parametrize("retention", [RETENTIONS, 1e-6, 0.05, 0.25, 0.62, 0.97])
def test_exact_count_and_ascending(name, prompt, retention):
    selection = methods.get(name)(prompt, retention, seed=3)
    assert selection.counts == prompt.grid.budgets(retention)
    assert selection.keep.dtype == torch.int64
    assert bool((selection.keep.diff() > 0).all())
    ends = torch.tensor(prompt.grid.host_video_offsets)[1:]
    videos = torch.bincount(torch.searchsorted(ends, selection.keep, right=True))
    assert tuple(videos.tolist()) == selection.counts
    if selection.embeds is not None:
        assert selection.embeds.shape == (len(selection.keep), make_width(prompt))
        assert bool(torch.isfinite(selection.embeds).all())


def make_width(prompt) -> int:
    return prompt.embeds.shape[1]


def test_a_video_alone_gives_what_it_gives_in_a_batch(name, make, prompt):
    method = methods.get(name)
    together = method(prompt, RETENTIONS, seed=3)
    each = make.kept_of_each(together)
    for index in range(len(SIZES)):
        one = make.random_prompt([SIZES[index]], [SEEDS[index]])
        alone = method(one, RETENTIONS[index], seed=3)
        assert alone.keep.tolist() == each[index]
        if together.embeds is not None and alone.embeds is not None:
            merged = together.embeds.split(together.counts)[index]
            torch.testing.assert_close(merged, alone.embeds)


def test_the_order_of_videos_does_not_matter(name, make, prompt):
    method = methods.get(name)
    order = [2, 0, 3, 1]
    other = make.random_prompt([SIZES[i] for i in order], [SEEDS[i] for i in order])
    moved = make.kept_of_each(method(other, [RETENTIONS[i] for i in order], seed=3))
    first = make.kept_of_each(method(prompt, RETENTIONS, seed=3))
    assert moved == [first[i] for i in order]


def test_the_same_seed_gives_the_same_tokens_and_the_prompt_is_left_alone(name, make, prompt):
    alone = make.random_prompt(SIZES[:1], SEEDS[:1])  # its video's rows are a view
    assert alone.embeds.data_ptr() <= alone.video_embeds.data_ptr() < alone.embeds[-1:].data_ptr()
    for given in (prompt, alone):
        before = given.embeds.clone()
        first, second = (methods.get(name)(given, 0.2, seed=5) for _ in range(2))
        assert torch.equal(first.keep, second.keep)
        if first.embeds is not None:
            assert torch.equal(first.embeds, second.embeds)
        assert torch.equal(given.embeds, before)


def test_keeping_everything_keeps_it_as_it_is(name, prompt):
    selection = methods.get(name)(prompt, 1.0)
    assert selection.keep.tolist() == list(range(prompt.grid.num_tokens))
    if selection.embeds is not None:
        assert torch.equal(selection.embeds, prompt.video_embeds)


def test_half_precision_and_copies_are_taken(name, make):
    prompt = make.random_prompt(SIZES, SEEDS, dtype=torch.bfloat16)
    selection = methods.get(name)(prompt, 0.25)
    assert selection.embeds is None or selection.embeds.dtype == torch.bfloat16
    prompt.embeds.index_copy_(0, prompt.video_index, torch.ones_like(prompt.video_embeds))
    same = methods.get(name)(prompt, 0.25)
    assert same.counts == prompt.grid.budgets(0.25)
    assert bool((same.keep.diff() > 0).all())
