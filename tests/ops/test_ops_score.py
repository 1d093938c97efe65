"""The compiled form of `score`: error budget, gradients, compilation, wrong input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import Grid, ops, reference
from cacovid.backends import available
from cacovid.errors import InvalidInputError
from cacovid.ops.score import pack_folds
from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.reference import ScoreFold
from cacovid.testing import cases_of
from cacovid.testing.budgets import assert_within_budget, cast, largest_error
from cacovid.types import Prompt

_CPU = available()["cpu"]
pytestmark = pytest.mark.skipif(not _CPU.available, reason=_CPU.reason)


def _policy(width: int, **settings: Any) -> CrossAttentionPolicy:
    torch.manual_seed(0)
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=width, **settings))


def _own_folds() -> tuple[Tensor, list[ScoreFold], Grid]:
    case = next(c for c in cases_of("score") if c.name == "ragged_3_slots_inter_frame_own")
    return case.make()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("width", "settings"),
    [
        (896, {}),
        (1000, {"slots": 7, "heads": 3, "token_features": 5, "frame_features": 31}),
        (333, {"slots": 3, "heads": 2, "token_features": 2, "frame_features": 1}),
        (31, {"slots": 9, "heads": 4, "token_features": 7, "frame_features": 8}),
        (2048, {"slots": 64, "inter_frame": True}),
        (3584, {"slots": 32, "heads": 4, "token_features": 64, "frame_features": 64,
                "inter_frame": True}),
        (8192, {"slots": 1, "heads": 1}),
        (896, {"slots": 0, "head_size": 8}),  # nine words and the null token: keys meet queries
        (500, {"slots": 21, "heads": 3, "head_size": 5, "inter_frame": True}),
    ],
)  # fmt: skip
def test_error_budget(width: int, settings: dict[str, Any], dtype: torch.dtype) -> None:
    policy = _policy(width, **settings).requires_grad_(False)
    grid = Grid([(3, 7, 9), (2, 1, 50)])
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(grid.num_tokens, width, generator=generator).to(dtype)
    folds = [policy.fold(torch.randn(9, width, generator=generator)) for _ in grid.sizes]
    got = ops.score(video, folds, grid, backend="cpu")
    plain = reference.score(video, cast(folds, dtype), grid)
    exact = reference.score(video.double(), cast(folds, torch.float64), grid)
    for ours, theirs, true in zip(got, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        assert_within_budget(ours, theirs, true)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_keys_that_are_not_folded(backend: str) -> None:
    """Packed or not, beside folded ones of the same policy, and with a gradient."""
    policy = _policy(64, slots=0, head_size=6).requires_grad_(False)
    grid = Grid([(3, 2, 5), (2, 1, 7)])
    video = torch.randn(grid.num_tokens, 64)
    folds = [policy.fold(torch.randn(words, 64)) for words in (4, 12)]
    assert [fold.keys is None for fold in folds] == [True, False]
    got = ops.score(video, folds, grid, backend=backend)  # one of each
    for rows, own, size, part in zip(
        video.split(list(grid.tokens_per_video)), folds, grid.sizes,
        got[0].split(list(grid.tokens_per_video)), strict=True,
    ):  # fmt: skip
        alone = ops.score(rows, own, [size], backend=backend)
        packed = ops.score(rows, pack_folds(own), [size], backend=backend)
        assert torch.equal(alone[0], part) and torch.equal(packed[0], part)
    with pytest.raises(InvalidInputError, match="some have keys and others not"):
        pack_folds(folds)
    long = folds[1]
    leaf = video[30:].clone().requires_grad_()
    token, _ = ops.score(leaf, long, [(2, 1, 7)], backend=backend)
    (gradient,) = torch.autograd.grad(token.sum(), leaf)
    plain = video[30:].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(reference.score(plain, long, [(2, 1, 7)])[0].sum(), plain)
    torch.testing.assert_close(gradient, wanted)
    with pytest.raises(InvalidInputError, match=r"keys are \(3, 6\)"):
        ops.score(video, dataclasses.replace(long, keys=torch.ones(3, 6)), grid, backend=backend)


def test_extreme_values_of_float16_are_read_exactly() -> None:
    """Subnormal and the largest finite numbers, beside ordinary ones; multiplied in float32."""
    info = torch.finfo(torch.float16)
    small = [info.tiny * 0.25, -info.smallest_normal, info.tiny * 0.75, -0.0, info.tiny, 0.0]
    video = torch.tensor([small, [info.max, -1.0, 0.5, 2.0, -info.max, 1.0]]).half().repeat(1, 4)
    _, folds, _ = _own_folds()
    fold = dataclasses.replace(folds[0], eps=1e-30)
    got = ops.score(video, fold, [(1, 1, 2)], backend="cpu")
    wide = ops.score(video.float(), fold, [(1, 1, 2)], backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(got, wide, strict=True))
    assert not torch.equal(got[0][0], got[0][1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_embeddings_are_not_hidden(value: float) -> None:
    video, folds, grid = _own_folds()
    video = video.clone()
    video[5, 3] = value
    token, frame = ops.score(video, folds, grid, backend="cpu")
    assert not bool(token[5].isfinite()) and not bool(frame[0].isfinite())
    assert bool(token[grid.host_video_offsets[1] :].isfinite().all())


@pytest.mark.parametrize(
    ("width", "sizes"),
    [(896, [(9, 14, 14), (1, 1, 3)]), (896, [(1, 10, 16)]), (3584, [(1, 4, 9)])],
    ids=["blocks", "one block", "wide"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_scores_again_and_with_any_number_of_threads(
    dtype: torch.dtype, width: int, sizes: list[tuple[int, int, int]]
) -> None:
    policy = _policy(width, inter_frame=True).requires_grad_(False)
    grid = Grid(sizes)
    video = torch.randn(grid.num_tokens, width).to(dtype)
    fold = policy.fold(torch.randn(5, width))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 8, 1):
            torch.set_num_threads(threads)
            results.append(ops.score(video, fold, grid, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_no_fold_is_told() -> None:
    policy = _policy(24)
    for wrong in (policy, 3, [], [policy.fold(torch.randn(2, 24)), None]):
        with pytest.raises(InvalidInputError, match=r"fold is of the type|folds were given"):
            ops.score(torch.randn(4, 24), wrong, [(1, 2, 2)])
    with pytest.raises(InvalidInputError, match=r"question is on meta .* policy on cpu"):
        policy.fold(torch.zeros(2, 24, device="meta"))


def test_lengths_of_questions_under_compile() -> None:
    """Symbolic sizes: one graph for each length, and never a broken one."""
    policy = _policy(64, slots=0, head_size=8).requires_grad_(False)
    grid = Grid([(3, 2, 5), (2, 1, 7)])
    video = torch.randn(grid.num_tokens, 64)

    def both(video: Tensor, a: ScoreFold, b: ScoreFold) -> tuple[Tensor, Tensor]:
        return ops.score(video, [a, b], grid)

    for dynamic in (None, True):
        torch.compiler.reset()
        compiled = torch.compile(both, fullgraph=True, backend="eager", dynamic=dynamic)
        for lengths in ((3, 5), (3, 6), (20, 21), (3, 20)):
            folds = [policy.fold(torch.randn(length, 64)) for length in lengths]
            for mine, plain in zip(compiled(video, *folds), both(video, *folds), strict=True):
                assert torch.equal(mine, plain)


def test_strided_video_and_autocast_change_nothing() -> None:
    video, folds, grid = _own_folds()
    expected = ops.score(video, folds, grid, backend="cpu")
    wide = torch.stack([video, -video], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = ops.score(video, folds, grid, backend="cpu")
    for other in (ops.score(wide, folds, grid, backend="cpu"), under):
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_folds_of_different_policies_in_one_pack() -> None:
    video, folds, grid = _own_folds()
    folds = [dataclasses.replace(f, eps=10.0**-i) for i, f in enumerate(folds)]
    got = ops.score(video, folds, grid, backend="cpu")
    plain = reference.score(video, folds, grid)
    exact = reference.score(video.double(), cast(folds, torch.float64), grid)
    for ours, theirs, true in zip(got, plain, exact, strict=True):
        assert_within_budget(ours, theirs, true)


@pytest.mark.parametrize("head_size", [64, 2])  # 2: fewer than the slots, whose keys stay apart
@pytest.mark.parametrize("bound", [None, 0.7])
def test_gradients_reach_the_policy(bound: float | None, head_size: int) -> None:
    """Against the unfolded formula, through packed folds of two questions."""
    grid = Grid([(3, 2, 5), (2, 1, 7)])
    generator = torch.Generator().manual_seed(3)
    video = torch.randn(grid.num_tokens, 24, generator=generator)
    questions = torch.randn(9, 24, generator=generator)
    prompt = _prompt(video, questions, grid)
    weights = torch.randn(grid.num_tokens + grid.num_frames, generator=generator)

    def gradients(dtype: torch.dtype, form: str) -> dict[str, Tensor]:
        settings = {"slots": 3, "head_size": head_size, "inter_frame": True}
        policy = _policy(24, **settings, score_bound=bound).to(dtype)
        if form == "plain":
            scores = policy.plain(prompt)
            parts = (scores.token, scores.frame)
        else:
            parts = ops.score(video, policy.folds(prompt), grid, backend=form)
        assert parts[1] is not None
        (torch.cat(parts).to(dtype) * weights.to(dtype)).sum().backward()
        return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}

    exact = gradients(torch.float64, "plain")
    plain = gradients(torch.float32, "plain")
    ours = gradients(torch.float32, "cpu")
    assert ours.keys() == exact.keys() and len(ours) > 15
    for name, gradient in ours.items():
        assert_within_budget(gradient, plain[name], exact[name])


def _prompt(video: Tensor, questions: Tensor, grid: Grid) -> Prompt:
    """A prompt of the videos' tokens and then two questions, of 4 and 5 tokens."""
    count = grid.num_tokens
    return Prompt(
        embeds=torch.cat([video, questions]),
        position_ids=torch.arange(count + len(questions)),
        video_index=torch.arange(count),
        question_index=torch.arange(count, count + len(questions)),
        grid=grid,
        question_offsets=(0, 4, 9),
    )


def test_gradient_of_the_video() -> None:
    video, folds, grid = _own_folds()
    grads = []
    for dtype, backend in (
        (torch.float32, "cpu"), (torch.float32, "reference"), (torch.float64, "reference")
    ):  # fmt: skip
        leaf = video.detach().clone().to(dtype).requires_grad_()
        token, frame = ops.score(leaf, cast(folds, dtype), grid, backend=backend)
        (token.sum() + frame.sum()).backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    assert_within_budget(*grads)


def test_frozen_folds_record_nothing() -> None:
    video, folds, grid = _own_folds()
    token, frame = ops.score(video, folds, grid, backend="cpu")
    assert not token.requires_grad and not frame.requires_grad


def test_fullgraph() -> None:
    video, folds, grid = _own_folds()

    def step(x: Tensor, columns: Tensor) -> Tensor:
        first = dataclasses.replace(folds[0], columns=columns)
        token, frame = ops.score(x, [first, *folds[1:]], grid)
        return torch.cat([token, frame])

    columns = folds[0].columns.clone().requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, expected = compiled(video, columns), step(video, columns)
    assert torch.equal(got, expected)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(2))
    a, b = (torch.autograd.grad((out * weights).sum(), columns)[0] for out in (got, expected))
    assert largest_error(a, b) == 0.0


def test_what_has_no_compiled_form() -> None:
    video, folds, grid = _own_folds()
    wide = cast(folds, torch.float64)
    token, _ = ops.score(video, wide, grid)
    assert torch.equal(token, reference.score(video, wide, grid)[0])
    with pytest.raises(InvalidInputError, match="takes folds in float32"):
        ops.score(video, wide, grid, backend="cpu")
    with pytest.raises(InvalidInputError, match="expected floating point"):
        ops.score(video.long(), folds, grid)
    with pytest.raises(InvalidInputError, match="a tensor of the fold on meta"):
        ops.score(video, dataclasses.replace(folds[0], values=folds[0].values.to("meta")), grid)
    head = folds[0].token._replace(output=torch.zeros(2, 8))
    with pytest.raises(InvalidInputError, match="token head's tensors"):
        ops.score(video, dataclasses.replace(folds[0], token=head), grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_folds_give_the_same_bits(dtype: torch.dtype) -> None:
    video, folds, grid = _own_folds()
    video = video.to(dtype)
    for given in (folds, folds[0], [folds[1]] * grid.num_videos):
        packed = pack_folds(given, dtype)
        expected = ops.score(video, given, grid, backend="cpu")
        got = ops.score(video, packed, grid, backend="cpu")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        # The reference's product reads the columns by rows then, and adds in another order.
        plain = ops.score(video, packed, grid, backend="reference")
        torch.testing.assert_close(plain, reference.score(video, given, grid))
    wide = cast(folds, torch.float64)
    got = ops.score(video.double(), pack_folds(wide, torch.float64), grid)
    torch.testing.assert_close(got, reference.score(video.double(), wide, grid))


def test_a_lone_fold_is_packed_without_copies() -> None:
    fold = _policy(896).requires_grad_(False).fold(torch.randn(5, 896))
    packed = pack_folds(fold)
    assert packed.columns.data_ptr() == fold.columns.data_ptr()
    assert packed.values.data_ptr() == fold.values.data_ptr()
    assert packed.columns.is_contiguous() and packed.columns.shape == (128, 896)


def test_gradients_flow_through_packed_folds() -> None:
    video, folds, grid = _own_folds()
    leaves = [fold.columns.clone().requires_grad_() for fold in folds]
    own = [dataclasses.replace(f, columns=leaf) for f, leaf in zip(folds, leaves, strict=True)]
    gradients = [
        torch.autograd.grad(ops.score(video, given, grid, backend="cpu")[0].sum(), leaves)
        for given in (own, pack_folds(own, torch.float32))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_packed_folds_that_do_not_fit_are_refused() -> None:
    video, folds, grid = _own_folds()
    packed = pack_folds(folds)
    with pytest.raises(InvalidInputError, match="no fold was given"):
        pack_folds([])
    with pytest.raises(InvalidInputError, match="of different policies"):
        pack_folds([folds[0], dataclasses.replace(folds[1], eps=0.1)])
    with pytest.raises(InvalidInputError, match="4 folds are packed for 1 videos"):
        ops.score(video[:189], packed, [grid.sizes[0]])
    with pytest.raises(InvalidInputError, match="hidden size 23, the packed folds 24"):
        ops.score(video[:, 1:], packed, grid)
    with pytest.raises(InvalidInputError, match="packed folds on meta"):
        ops.score(video, packed._replace(columns=packed.columns.to("meta")), grid)
    rounded = packed._replace(columns=packed.columns.bfloat16())
    with pytest.raises(InvalidInputError, match=r"packed for videos in torch\.bfloat16; got .*32"):
        ops.score(video, rounded, grid)


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    video, folds, _ = _own_folds()
    packed = list(pack_folds(folds[:2]))
    op = torch.ops.cacovid.score
    for sizes, message in (
        ([3, 21, 0], "rows; the sizes ask for 63"),
        ([1, len(video), 2], "contradict themselves"),
        ([1, len(video)], "expected 3"),
    ):
        with pytest.raises(ValueError, match=message):
            op(video, *packed[:4], sizes, *packed[4:])
    with pytest.raises(ValueError, match=r"columns does not fit"):
        op(video, packed[0][1:], *packed[1:4], [1, len(video), 0], *packed[4:])
