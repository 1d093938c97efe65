"""Packed rollouts against prompts that are repeated and indexed one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference import ocss_sample, pack_rollouts
from cacovid.types import Grid, Prompt


def make_prompt(three_axes: bool = False) -> Prompt:
    """Three packed prompts: one video, none, two videos with text between; 41 tokens in all."""
    text, videos = (5, 4, 3, 2, 3), (9, 8, 7)
    pieces, row = [], 0
    order = [("t", 5), ("v", 9), ("t", 4), ("v", 8), ("t", 3), ("v", 7), ("t", 2), ("t", 3)]
    assert sum(n for kind, n in order if kind == "t") == sum(text)
    index: dict[str, list[int]] = {"t": [], "v": []}
    for kind, n in order:
        index[kind] += range(row, row + n)
        pieces.append((row, row + n))
        row += n
    assert len(index["v"]) == sum(videos)
    positions = torch.randint(0, 99, (3, row) if three_axes else (row,))
    return Prompt(
        embeds=torch.randn(row, 6, dtype=torch.float64),
        position_ids=positions,
        video_index=torch.tensor(index["v"]),
        question_index=torch.tensor([15, 16, 38, 39, 40, 38, 39]),
        grid=Grid([(3, 1, 3), (2, 2, 2), (1, 7, 1)]),
        prompt_offsets=(0, 16, 18, row),
        question_offsets=(0, 2, 5, 7),
        extras={"vision_attention": torch.randn(24)},
    )


def one_by_one(prompt: Prompt, masks: Tensor) -> list[Tensor]:
    """Rows of every rollout, in its order: what is no video token, or is kept."""
    rows = []
    for mask in masks:
        stays = torch.ones(len(prompt.embeds), dtype=torch.bool)
        stays[prompt.video_index] = mask
        rows.append(stays.nonzero().flatten())
    return rows


def random_masks(groups: int, tokens: int, seed: int = 0) -> Tensor:
    masks = torch.rand(groups, tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    masks[:, [2, 10, 20]] = True  # at least one of each video
    return masks


@pytest.mark.parametrize("three_axes", [False, True])
def test_ragged_masks_of_several_prompts(three_axes: bool) -> None:
    prompt, masks = make_prompt(three_axes), random_masks(5, 24)
    packed = pack_rollouts(prompt, masks)
    rows = one_by_one(prompt, masks)
    flat = torch.cat(rows)
    assert torch.equal(packed.embeds, prompt.embeds[flat])
    assert torch.equal(packed.position_ids, prompt.position_ids[..., flat])

    assert packed.prompt_offsets is not None and prompt.prompt_offsets is not None
    bounds = list(pairwise(prompt.prompt_offsets))
    lengths = [int(((row >= a) & (row < b)).sum()) for row in rows for a, b in bounds]
    assert [b - a for a, b in pairwise(packed.prompt_offsets)] == lengths

    per_video = [int(part.sum()) for mask in masks for part in mask.split([9, 8, 7])]
    assert packed.grid == Grid([(1, 1, n) for n in per_video])
    kept = torch.cat([prompt.video_index[mask] for mask in masks])
    assert torch.equal(flat[packed.video_index], kept)

    assert torch.equal(flat[packed.question_index], prompt.question_index.repeat(5))
    assert packed.question_offsets is not None
    assert [b - a for a, b in pairwise(packed.question_offsets)] == [2, 3, 2] * 5
    rollout_of = torch.repeat_interleave(torch.arange(5), torch.tensor([len(r) for r in rows]))
    assert rollout_of[packed.question_index].tolist() == [g for g in range(5) for _ in range(7)]
    assert rollout_of[packed.video_index].tolist() == masks.nonzero()[:, 0].tolist()
    assert packed.extras == {}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_equal_masks(dtype: torch.dtype) -> None:
    prompt = make_prompt()
    indices = ocss_sample(torch.randn(24), prompt.grid, 0.4, 6, seed=1)
    masks = torch.zeros(6, 24, dtype=torch.bool).scatter_(1, indices.long(), True)
    a, b = pack_rollouts(prompt, indices.to(dtype)), pack_rollouts(prompt, masks)
    for name in ("embeds", "position_ids", "video_index", "question_index"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.grid == b.grid and a.prompt_offsets == b.prompt_offsets
    assert a.question_offsets == b.question_offsets


def test_everything_kept_is_the_prompt_itself() -> None:
    prompt = make_prompt()
    packed = pack_rollouts(prompt, torch.ones(1, 24, dtype=torch.bool))
    assert torch.equal(packed.embeds, prompt.embeds)
    assert torch.equal(packed.video_index, prompt.video_index)
    assert torch.equal(packed.question_index, prompt.question_index)
    assert packed.prompt_offsets == prompt.prompt_offsets
    assert packed.question_offsets == prompt.question_offsets


def test_one_question_for_all_videos_is_given_to_each() -> None:
    prompt = replace(
        make_prompt(), prompt_offsets=None, question_offsets=None, question_index=torch.tensor([40])
    )
    packed = pack_rollouts(prompt, random_masks(2, 24))
    assert packed.question_offsets == (0, 1, 2, 3, 4, 5, 6)
    assert packed.prompt_offsets is not None and len(packed.prompt_offsets) == 3
    last = [end - 1 for end in packed.prompt_offsets[1:]]
    assert packed.question_index.tolist() == [last[0]] * 3 + [last[1]] * 3


def test_a_packed_prompt_can_be_packed_again() -> None:
    prompt = make_prompt()
    packed = pack_rollouts(prompt, random_masks(3, 24))
    again = pack_rollouts(packed, torch.ones(2, packed.grid.num_tokens, dtype=torch.bool))
    assert torch.equal(again.embeds, packed.embeds.repeat(2, 1))
    assert again.grid == Grid(packed.grid.sizes * 2)


def test_the_gradient_counts_the_rollouts_that_read_a_row() -> None:
    prompt, masks = make_prompt(), random_masks(4, 24)
    prompt.embeds.requires_grad_()
    pack_rollouts(prompt, masks).embeds.sum().backward()
    expected = torch.full((41,), 4.0, dtype=torch.float64)
    expected[prompt.video_index] = masks.sum(0).double()
    assert prompt.embeds.grad is not None
    assert torch.equal(prompt.embeds.grad, expected[:, None].expand(-1, 6))


def test_bad_rollouts_are_named() -> None:
    prompt, masks = make_prompt(), random_masks(2, 24)
    for rollouts, message in (
        (masks[0], r"expected masks \[G, N\] bool or token indices"),
        (masks.to(torch.uint8), "expected masks"),
        (masks[:, :23], "masks are of 23 tokens; the prompt's videos have 24"),
        (masks[:0], "at least one rollout"),
        (torch.tensor([[0, 9, 24]]), "indices from 0 to 24; the prompt's videos have 24 tokens"),
        (torch.tensor([[-1, 9, 20]]), "indices from -1 to 20"),
        (torch.tensor([[0, 9, 20], [9, 0, 20]]), "do not ascend"),
        (torch.tensor([[0, 9, 9, 20]]), "do not ascend"),
        (torch.tensor([[0, 9, 20], [0, 1, 20]]), "rollout 1 keeps no token of video 1"),
        (masks.to("meta"), "on cpu and rollouts on meta"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            pack_rollouts(prompt, rollouts)
    masks[1, 17:] = False
    with pytest.raises(InvalidInputError, match="rollout 1 keeps no token of video 2"):
        pack_rollouts(prompt, masks)
    wrong = replace(prompt, question_index=prompt.video_index[:7])
    with pytest.raises(InvalidInputError, match="question_index points at video tokens"):
        pack_rollouts(wrong, random_masks(2, 24))


def test_indices_of_one_video_are_packed_without_a_look_at_the_device() -> None:
    # Tensors on "meta" have no values: reading one back raises.
    with torch.device("meta"):
        prompt = Prompt(
            embeds=torch.empty(20, 8),
            position_ids=torch.empty(3, 20, dtype=torch.int64),
            video_index=torch.empty(12, dtype=torch.int64),
            question_index=torch.empty(4, dtype=torch.int64),
            grid=Grid([(3, 2, 2)]),
        )
        kept = torch.empty(5, 6, dtype=torch.int32)
        masks = torch.empty(5, 12, dtype=torch.bool)
    packed = pack_rollouts(prompt, kept)
    assert packed.embeds.shape == (5 * (8 + 6), 8)
    assert packed.position_ids.shape == (3, 5 * (8 + 6))
    assert packed.prompt_offsets == (0, 14, 28, 42, 56, 70)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        pack_rollouts(prompt, masks)
