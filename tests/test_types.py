"""Grid, Prompt and Selection: sizes, offsets, budgets, errors."""

import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Prompt, Selection


def test_grid_counts_and_offsets() -> None:
    grid = Grid([(2, 3, 3), (1, 2, 2)])
    assert (grid.num_videos, grid.num_frames, grid.num_tokens) == (2, 3, 22)
    assert grid.frame_offsets().tolist() == [0, 9, 18, 22]
    assert grid.video_offsets().tolist() == [0, 18, 22]
    assert grid.video_frame_offsets().tolist() == [0, 2, 3]
    assert grid.frame_offsets() is grid.frame_offsets()


def test_grid_is_a_value() -> None:
    assert Grid([(2, 3, 3)]) == Grid([[2, 3, 3]])
    assert hash(Grid([(2, 3, 3)])) == hash(Grid([(2, 3, 3)]))
    assert Grid.of([(2, 3, 3)]).video(0) == Grid([(2, 3, 3)])


@pytest.mark.parametrize("sizes", [[], [(0, 1, 1)], [(1, 2)], [(1, 1, -3)]])
def test_grid_refuses_bad_sizes(sizes: list) -> None:
    with pytest.raises(InvalidInputError):
        Grid(sizes)


def test_budgets_are_floors_in_float64() -> None:
    assert Grid([(1, 10, 10)]).budgets(0.29) == (29,)
    assert Grid([(32, 14, 14)]).budgets(0.1) == (627,)
    assert Grid([(1, 1, 3), (2, 2, 2)]).budgets([0.1, 1.0]) == (1, 8)


@pytest.mark.parametrize("retention", [0.0, -0.1, 1.5, float("nan")])
def test_budgets_refuse_bad_ratios(retention: float) -> None:
    with pytest.raises(InvalidInputError, match="retention"):
        Grid([(1, 2, 2)]).budgets(retention)


def test_per_video_needs_one_value_each() -> None:
    with pytest.raises(InvalidInputError, match="3 values for 2 videos"):
        Grid([(1, 2, 2), (1, 2, 2)]).budgets([0.1, 0.2, 0.3])


def test_selection_mask_and_frames() -> None:
    grid = Grid([(2, 1, 3), (1, 1, 2)])
    selection = Selection(torch.tensor([0, 4, 5, 7]), grid, (3, 1))
    assert selection.mask().tolist() == [True, False, False, False, True, True, False, True]
    assert selection.per_frame().tolist() == [1, 2, 1]
    with pytest.raises(InvalidInputError):
        Selection(torch.tensor([0]), grid, (1, 1))


def test_prompt_gathers_rows_and_checks_shapes() -> None:
    grid = Grid([(1, 1, 2)])
    embeds = torch.arange(10.0).reshape(5, 2)
    prompt = Prompt(embeds, torch.arange(5), torch.tensor([1, 2]), torch.tensor([4]), grid)
    assert prompt.video_embeds.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert prompt.question_embeds.tolist() == [[8.0, 9.0]]
    with pytest.raises(InvalidInputError, match="position_ids"):
        Prompt(embeds, torch.arange(4), torch.tensor([1, 2]), torch.tensor([4]), grid)
    with pytest.raises(InvalidInputError, match="video_index"):
        Prompt(embeds, torch.arange(5), torch.tensor([1]), torch.tensor([4]), grid)
