"""Grid, Prompt and Selection: sizes, offsets, budgets, errors."""

import numpy as np
import pytest
import torch

from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Prompt, Scores, Selection


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


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ([(1.5, 6, 6)], r"\(1\.5, 6, 6\)"), ([(2.0, 6, 6)], r"\(2\.0, 6, 6\)"), ((16, 6, 6), "16"),
        (16, "16"), (None, "None"), (["abc"], "'abc'"),
    ],
)  # fmt: skip
def test_grid_says_what_is_no_size(sizes: object, given: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"{given}; expected .*\(t, h, w\)"):
        Grid(sizes)  # type: ignore[arg-type]


def test_grid_takes_whole_numbers_of_any_kind() -> None:
    for sizes in (np.array([[2, 3, 3]]), torch.tensor([[2, 3, 3]]), [(np.int32(2), 3, 3)]):
        grid = Grid(sizes)
        assert grid == Grid([(2, 3, 3)])
        assert all(type(v) is int for v in grid.sizes[0])


def test_budgets_are_floors_in_float64() -> None:
    assert Grid([(1, 10, 10)]).budgets(0.29) == (29,)
    assert Grid([(32, 14, 14)]).budgets(0.1) == (627,)
    assert Grid([(1, 1, 3), (2, 2, 2)]).budgets([0.1, 1.0]) == (1, 8)


@pytest.mark.parametrize("retention", [0.0, -0.1, 1.5, float("nan")])
def test_budgets_refuse_bad_ratios(retention: float) -> None:
    with pytest.raises(InvalidInputError, match="retention"):
        Grid([(1, 2, 2)]).budgets(retention)


@pytest.mark.parametrize(
    "retention",
    [
        np.float32(0.29), np.float64(0.29), np.float16(0.29), np.array(0.29, dtype=np.float32),
        torch.tensor(0.29), torch.tensor([0.29]), np.array([0.29]), [np.float32(0.29)],
        [torch.tensor(0.29, dtype=torch.float64)],
    ],
)  # fmt: skip
def test_budgets_take_numbers_of_numpy_and_torch_as_they_were_written(retention: object) -> None:
    assert Grid([(1, 10, 10)]).budgets(retention) == (29,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("retention", "given"),
    [
        (None, "None"), ("a", "'a'"), ([None], "None"), ("0.1", "'0.1'"), (["a"], "'a'"),
        (np.ones((1, 1)), "array"), (torch.tensor(0.1, device="meta"), "tensor on meta"),
        (torch.tensor(0.1, dtype=torch.bfloat16), r"torch\.bfloat16"), (object(), "object"),
    ],
)  # fmt: skip
def test_budgets_say_what_is_no_number(retention: object, given: str) -> None:
    with pytest.raises(InvalidInputError, match=f"(?s)retention is .*{given}.*; expected .*number"):
        Grid([(1, 2, 2)]).budgets(retention)  # type: ignore[arg-type]


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
    assert prompt.video_embeds.data_ptr() == embeds[1:].data_ptr()  # they stand together
    for apart in ([1, 3], [2, 1], [3, 3]):
        own = Prompt(embeds, torch.arange(5), torch.tensor(apart), torch.tensor([4]), grid)
        assert torch.equal(own.video_embeds, embeds[apart])
    assert prompt.question_embeds.tolist() == [[8.0, 9.0]]
    with pytest.raises(InvalidInputError, match="position_ids"):
        Prompt(embeds, torch.arange(4), torch.tensor([1, 2]), torch.tensor([4]), grid)
    with pytest.raises(InvalidInputError, match="video_index"):
        Prompt(embeds, torch.arange(5), torch.tensor([1]), torch.tensor([4]), grid)
    with pytest.raises(InvalidInputError, match=r"video_index runs from 1 to 5; .* from 0 to 4"):
        Prompt(embeds, torch.arange(5), torch.tensor([1, 5]), torch.tensor([4]), grid)
    with pytest.raises(InvalidInputError, match="question_index runs from -1 to -1"):
        Prompt(embeds, torch.arange(5), torch.tensor([1, 2]), torch.tensor([-1]), grid)


def prompt_with(**changes: object) -> Prompt:
    values = {
        "embeds": torch.zeros(9, 2), "position_ids": torch.arange(9),
        "video_index": torch.arange(4), "question_index": torch.arange(4, 9),
        "grid": Grid([(1, 1, 2), (1, 1, 2)]),
    }  # fmt: skip
    return Prompt(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embeds", torch.zeros(9, 2, dtype=torch.int64), "embeds is torch.int64; expected a float"),
        ("position_ids", torch.zeros(9), "position_ids is torch.float32; expected torch.int64"),
        ("position_ids", torch.zeros(2, 9, dtype=torch.int64), r"\(2, 9\) for 9 tokens"),
        ("position_ids", torch.zeros(3, 1, 9, dtype=torch.int64), r"expected \[S\] or \[3, S\]"),
        ("position_ids", torch.tensor(3), r"expected \[S\] or \[3, S\]"),
        ("video_index", torch.ones(4, dtype=torch.bool), "video_index is torch.bool; expected"),
        ("video_index", torch.arange(4.0), "video_index is torch.float32; expected torch.int64"),
        ("video_index", torch.arange(4)[None], r"video_index has shape \(1, 4\); .*\[N\]"),
        ("question_index", torch.arange(2.0), "question_index is torch.float32"),
        ("prompt_offsets", (0, 70), "prompt_offsets is .*70.* ascend from 0 to 9"),
        ("prompt_offsets", (1, 9), "ascend from 0 to 9"),
        ("prompt_offsets", (0, 5, 4, 9), "ascend from 0 to 9"),
        ("prompt_offsets", (0.0, 9.0), "host integers"),
        ("prompt_offsets", torch.tensor([0, 9]), "host integers"),
        ("prompt_offsets", 9, "host integers"),
        ("question_offsets", (0, 9), "question_offsets is .*3 of them for 2 videos"),
        ("question_offsets", (0, 5), "3 of them for 2 videos"),
        ("question_offsets", (0, 1, 2), "ascend from 0 to 5, the tokens of question_index"),
        ("question_offsets", (0, 6, 5), "ascend from 0 to 5"),
    ],
)
def test_prompt_says_what_does_not_fit(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        prompt_with(**{name: value})


def test_prompt_takes_what_fits() -> None:
    prompt = prompt_with(
        position_ids=torch.zeros(3, 9, dtype=torch.int64), question_offsets=[0, 0, 5],
        prompt_offsets=np.array([0, 4, 9]),
    )  # fmt: skip
    assert prompt.question_offsets == (0, 0, 5) and prompt.prompt_offsets == (0, 4, 9)
    assert all(type(value) is int for value in prompt.prompt_offsets)


def test_prompts_are_made_in_compiled_code_and_of_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def read(embeds: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        prompt = prompt_with(
            embeds=embeds, position_ids=places, video_index=places[:4], question_index=places[4:],
            prompt_offsets=(0, 9), question_offsets=(0, 2, 5),
        )  # fmt: skip
        return prompt.video_embeds.sum() + Selection(places[:3].int(), prompt.grid, (2, 1)).keep

    given = torch.rand(9, 2), torch.arange(9)
    compiled = torch.compile(read, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*given), read(*given))
    with FakeTensorMode():
        assert read(torch.rand(9, 2), torch.arange(9)).shape == (3,)


def test_keep_is_int64_or_made_it() -> None:
    grid = Grid([(1, 2, 3)])
    for dtype in (torch.int32, torch.int16, torch.uint8):
        selection = Selection(torch.tensor([0, 4], dtype=dtype), grid)
        assert selection.keep.dtype == torch.int64 and selection.mask().sum() == 2
        assert selection.per_frame().tolist() == [2]
    for keep in (torch.ones(6, dtype=torch.bool), torch.arange(2.0), torch.arange(2)[None]):
        with pytest.raises(InvalidInputError, match=r"keep is torch.* expected \[K\] int64"):
            Selection(keep, grid)


def test_a_grid_may_be_made_of_a_grid() -> None:
    grid = Grid([(2, 3, 3), (1, 2, 2)])
    assert Grid(grid) == grid and Grid(grid).num_tokens == 22


def test_prompt_and_selection_take_a_list_for_a_grid() -> None:
    places = torch.arange(18)
    prompt = Prompt(torch.zeros(18, 2), places, places, places[:0], [(2, 3, 3)])  # type: ignore[arg-type]
    assert prompt.grid == Grid([(2, 3, 3)])
    assert Selection(places, [(2, 3, 3)], (18,)).grid == prompt.grid  # type: ignore[arg-type]


def test_counts_that_are_left_out_are_counted() -> None:
    grid = Grid([(2, 1, 3), (1, 1, 2), (1, 1, 1)])
    assert Selection(torch.tensor([0, 4, 5, 7]), grid).counts == (3, 1, 0)
    assert Selection(torch.arange(0), grid).counts == (0, 0, 0)
    for keep in ([0, 9], [-1, 2], [2, 1], [1, 1]):
        with pytest.raises(InvalidInputError, match="keep does not ascend within the 9 tokens"):
            Selection(torch.tensor(keep), grid)


def test_representations_are_short() -> None:
    grid, places = Grid([(1, 50, 50)]), torch.arange(2500)
    scores = Scores(torch.zeros(2500), torch.zeros(1))
    prompt = Prompt(torch.zeros(2500, 2), places, places, places[:0], grid, extras={"a": places})
    assert repr(scores) == "Scores(token=float32[2500], frame=float32[1])"
    assert repr(Scores(places)) == "Scores(token=int64[2500], frame=None)"
    assert repr(Selection(places, grid)) == (
        "Selection(keep=int64[2500], grid=Grid(sizes=((1, 50, 50),)), counts=(2500,))"
    )
    assert repr(prompt) == (
        "Prompt(embeds=float32[2500, 2], position_ids=int64[2500], video_index=int64[2500], "
        "question_index=int64[0], grid=Grid(sizes=((1, 50, 50),)), extras=['a'])"
    )
