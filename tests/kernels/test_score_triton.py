"""The Triton form of `score` against the reference: in the interpreter, or on a GPU."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import Grid, SurpriseConfig, SurprisePolicy, ops, reference
from cacovid.backends import available
from cacovid.errors import InvalidInputError
from cacovid.ops import _score_triton
from cacovid.ops.score import PackedFolds, pack_folds, score_packed
from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.reference import ScoreFold
from cacovid.reference.score import HeadWeights
from cacovid.testing import cases_of
from cacovid.testing.budgets import assert_within_budget, cast, largest_error

pytest.importorskip("triton")

from cacovid.kernels import configurations
from cacovid.kernels.score import (
    ScoreForward,
    _configuration,
    score_dw_triton,
    score_fwd_triton,
)
from cacovid.kernels.score_plan import tile_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUSED = {
    "FUSED": 1, "BLOCK_N": 128, "BLOCK_K": 128, "DESCRIPTORS": 1, "num_warps": 4, "num_stages": 2,
}  # fmt: skip
SPLIT = {
    "FUSED": 0, "BLOCK_N": 128, "BLOCK_C": 64, "BLOCK_K": 128, "SPLIT_K": 1, "FINISH_N": 64,
    "FINISH_WARPS": 4, "DESCRIPTORS": 1, "num_warps": 4, "num_stages": 2,
}  # fmt: skip
DW = {"BLOCK_N": 32, "BLOCK_D": 64, "BLOCK_C": 64, "PROGRAMS": 12, "num_warps": 4, "num_stages": 2}
#: Two videos of ragged grids; frames of 21 and 7 tokens do not align with tiles.
GRID = Grid([(3, 3, 7), (4, 1, 7)])


def make_fold(
    size: int, heads: int, slots: int, widths: tuple[int, int], inter_frame: bool, seed: int,
    bound: float | None = 3.0,
) -> ScoreFold:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    features = sum(widths)
    columns = heads * slots + features * (2 if inter_frame else 1)
    token, frame = (HeadWeights(draw(w), draw(w, w), draw(w), draw(1, w), draw(1)) for w in widths)
    return ScoreFold(
        draw(size, columns) * (4.0 / math.sqrt(size)), draw(heads * slots, features), heads, token,
        frame, score_bound=bound,
    )  # fmt: skip


def draw_video(rows: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(5)).to(dtype)


def arguments(video: Tensor, folds: list[ScoreFold], grid: Grid) -> tuple[Any, ...]:
    """Those of the op; a fold for all videos, or one for each."""
    packed = pack_folds(folds)
    sizes = []
    for index, (t, h, w) in enumerate(grid.sizes):
        sizes += [t, h * w, index if len(folds) > 1 else 0]
    packed = packed.with_tensors([t.to(DEVICE) for t in packed.tensors])
    return (video.to(DEVICE), *packed[:4], sizes, *packed[4:])


def fitted(config: dict[str, int], dtype: torch.dtype) -> dict[str, int]:
    """A configuration that fits a GPU: float32 takes twice the memory, and three products."""
    if dtype != torch.float32:
        return config
    return {**config, "BLOCK_N": min(64, config["BLOCK_N"]), "BLOCK_K": 32}


def scores(
    video: Tensor, folds: list[ScoreFold], grid: Grid, config: dict[str, int] | None,
    keep: bool = False,
) -> ScoreForward:  # fmt: skip
    given = arguments(video, folds, grid)
    config = config and fitted(config, video.dtype)
    return score_fwd_triton(*given, config=config, keep=keep)


def check(video: Tensor, folds: list[ScoreFold], grid: Grid, config: dict[str, int] | None) -> None:
    done = scores(video, folds, grid, config)
    own = folds if len(folds) > 1 else folds * grid.num_videos
    plain = reference.score(video, cast(own, video.dtype), grid)
    exact = reference.score(video.double(), cast(own, torch.float64), grid)
    for ours, theirs, true in zip((done.token, done.frame), plain, exact, strict=True):
        assert ours.dtype == torch.float32
        assert_within_budget(ours.cpu(), theirs, true)


#: Every operation of a program costs the interpreter a tenth of a millisecond and more.
LARGEST = 5000 if DEVICE == "cuda" else 400


@pytest.mark.parametrize("case", cases_of("score"), ids=lambda case: case.name)
def test_every_case(case: Any) -> None:
    (video, folds, grid), _ = case.make()
    if len(video) > LARGEST:
        pytest.skip("takes the interpreter long")
    folds = [folds] if isinstance(folds, ScoreFold) else folds
    apart = folds[0].inter_frame or folds[0].keys is not None
    check(video, folds, grid, {**(SPLIT if apart else FUSED), "BLOCK_K": 32})


@pytest.mark.parametrize("inter_frame", [False, True])
def test_keys_that_are_not_folded(inter_frame: bool) -> None:
    """Of two questions, by the default configuration and with `D` in parts."""
    torch.manual_seed(0)
    config = CrossAttentionConfig(hidden_size=128, slots=0, head_size=16, inter_frame=inter_frame)
    policy = CrossAttentionPolicy(config).requires_grad_(False)
    folds = [policy.fold(torch.randn(length, 128)) for length in (19, 40)]
    assert all(fold.keys is not None for fold in folds)
    video = draw_video(GRID.num_tokens, 128, torch.bfloat16)
    for own in (None, {**SPLIT, "BLOCK_K": 32, "SPLIT_K": 2}):
        check(video, folds, GRID, own)
    plain = scores(video, folds, GRID, None)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(scores(video, folds, GRID, None).token, plain.token)
    with pytest.raises(ValueError, match="keys are given"):
        scores(video, folds, GRID, None, keep=True)


def test_the_surprise_policy_is_served() -> None:
    torch.manual_seed(0)
    config = SurpriseConfig(hidden_size=64, width=24, inner_width=8)
    fold = SurprisePolicy(config).requires_grad_(False).fold()
    check(draw_video(GRID.num_tokens, 64), [fold], GRID, {**SPLIT, "BLOCK_K": 32})


#: `D`, heads, slots of a head, widths, whether with inter-frame columns, configuration.
Shape = tuple[int, int, int, tuple[int, int], bool, dict[str, int] | None]
#: Those with a configuration are compiled by `tests/compile` too.
SHAPES: list[Shape] = [
    (256, 2, 32, (32, 32), False, None),  # the design point, by the default configuration
    (256, 2, 32, (32, 32), True, None),
    (904, 2, 32, (32, 32), False, FUSED),  # D is no multiple of the blocks
    (203, 1, 1, (5, 31), False, {**FUSED, "BLOCK_N": 64}),  # rows that are not aligned
    (128, 3, 7, (40, 30), False, {**FUSED, "DESCRIPTORS": 0}),
    (200, 4, 64, (32, 32), False, {**FUSED, "BLOCK_N": 32}),  # 320 columns
    (200, 2, 128, (32, 32), True, {**SPLIT, "BLOCK_C": 128}),  # 384 columns
    (3584, 2, 32, (32, 32), False, {**SPLIT, "SPLIT_K": 4}),  # of a model of 7 billion weights
    (200, 3, 5, (8, 9), True, {**SPLIT, "SPLIT_K": 8, "BLOCK_K": 32, "DESCRIPTORS": 0}),
    (8192, 2, 32, (32, 32), False, FUSED),  # the largest hidden size
]


def questions(shape: Shape) -> list[ScoreFold]:
    """Two of different length; one where it is long."""
    size, heads, slots, widths, inter_frame, _ = shape
    count = 1 if slots in (64, 128) else 2
    return [make_fold(size, heads, slots + i, widths, inter_frame, i) for i in range(count)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (shape, dtype)
        for dtype in DTYPES
        # On a GPU everything; the interpreter takes seconds for each.
        for shape in (SHAPES if dtype == torch.bfloat16 or DEVICE == "cuda" else SHAPES[2::2])
    ],
)
def test_error_budget(shape: Shape, dtype: torch.dtype) -> None:
    video = draw_video(GRID.num_tokens, shape[0], dtype)
    check(video, questions(shape), GRID, shape[-1])


@pytest.mark.parametrize("config", [FUSED, {**SPLIT, "SPLIT_K": 2}])
def test_same_bits_again(config: dict[str, int]) -> None:
    given = draw_video(91, 128), [make_fold(128, 2, 8, (16, 16), False, 0)], GRID
    first, second = (scores(*given, config, keep=True) for _ in range(2))
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(a, b), field.name
    # A frame's mean is a sum of pieces; tiles of another height cut it into others.
    _, _, pieces = tile_tables(((3, 21, 0),), (16,), 32, 16, torch.device("cpu"))
    assert pieces == 6


def test_a_video_alone_scores_as_in_a_pack() -> None:
    fold = make_fold(128, 2, 8, (16, 16), True, 0)
    video = draw_video(GRID.num_tokens, 128)
    packed = scores(video, [fold], GRID, SPLIT)
    alone = scores(video[63:].contiguous(), [fold], GRID.video(1), SPLIT)
    assert torch.equal(packed.token[63:], alone.token)
    assert torch.equal(packed.frame[3:], alone.frame)


def test_other_videos_do_not_leak_in() -> None:
    fold = make_fold(128, 2, 8, (16, 16), True, 0)
    video = draw_video(GRID.num_tokens, 128)
    video[63:] = float("nan")
    done = scores(video, [fold], GRID, SPLIT)
    assert bool(done.token[:63].isfinite().all()) and bool(done.frame[:3].isfinite().all())
    assert not bool(done.token[63:].isfinite().any())


def test_a_wider_row_step_is_read_in_place() -> None:
    fold = make_fold(128, 2, 8, (16, 16), False, 0)
    wide = draw_video(GRID.num_tokens, 160)
    given = arguments(wide[:, :128].contiguous(), [fold], GRID)
    config = fitted(FUSED, wide.dtype)
    expected = score_fwd_triton(*given, config=config)
    strided = wide.to(DEVICE)[:, :128]
    got = score_fwd_triton(strided, *given[1:], config=config)
    assert torch.equal(got.token, expected.token) and torch.equal(got.frame, expected.frame)


@pytest.mark.parametrize("config", [FUSED, {**SPLIT, "SPLIT_K": 2}])
def test_what_is_kept_for_the_gradient(config: dict[str, int]) -> None:
    fold = make_fold(200, 3, 5, (8, 9), False, 0)
    video = draw_video(GRID.num_tokens, 200)
    done = scores(video, [fold], GRID, config, keep=True)
    assert done.z is not None and done.squares is not None
    exact = video.double() @ fold.columns.double()
    assert_within_budget(done.z.cpu(), video @ fold.columns, exact)
    assert_within_budget(
        done.squares.cpu(), video.square().sum(dim=1), video.double().square().sum(dim=1)
    )


@pytest.mark.parametrize(("columns", "dtype"), zip((70, 128, 70), DTYPES, strict=True))
def test_gradient_of_the_columns(columns: int, dtype: torch.dtype) -> None:
    video = draw_video(GRID.num_tokens, 200, dtype)
    # Small, as of a mean over many tokens: such numbers vanish in float16.
    dz = draw_video(GRID.num_tokens, columns) * 1e-8
    sizes = [3, 21, 1, 4, 7, 0]
    got = score_dw_triton(video.to(DEVICE), dz.to(DEVICE), sizes, 3, config=DW).cpu()
    scale = 1e8  # the band of float32's rounding is for numbers near 1
    for fold, rows in ((1, slice(0, 63)), (0, slice(63, 91))):
        x, d = video[rows], dz[rows] * scale
        exact = d.double().T @ x.double()
        assert_within_budget(got[fold] * scale, (d.to(dtype).T @ x).float(), exact)
    assert not bool(got[2].any())  # a fold that no video uses
    assert torch.equal(got, score_dw_triton(
        video.to(DEVICE), dz.to(DEVICE), sizes, 3, config=DW).cpu())  # fmt: skip


@pytest.mark.parametrize(("inter_frame", "dtype"), zip((True, True, False), DTYPES, strict=True))
def test_gradients_through_the_op(
    inter_frame: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The autograd of `cacovid.ops.score` with the Triton form in it."""
    folds = [make_fold(64, 2, 8 + i, (16, 16), inter_frame, i) for i in (0, 1)]
    video = draw_video(GRID.num_tokens, 64, dtype)
    weights = torch.randn(GRID.num_tokens + GRID.num_frames)
    config = fitted(SPLIT if inter_frame else FUSED, dtype)
    monkeypatch.setattr(
        configurations, "find", lambda op, *rest: DW if op == "score_dw" else config
    )

    def gradients(form: str, video: Tensor, dtype: torch.dtype) -> list[Tensor]:
        leaves = [video.clone().requires_grad_(), *(
            t.detach().clone().to(dtype).requires_grad_()
            for fold in folds for t in (fold.columns, fold.values, *fold.token, *fold.frame)
        )]  # fmt: skip
        own = [
            dataclasses.replace(
                fold, columns=part[0], values=part[1], token=HeadWeights(*part[2:7]),
                frame=HeadWeights(*part[7:]),
            )
            for fold, part in zip(folds, (leaves[1:13], leaves[13:]), strict=True)
        ]  # fmt: skip
        if form == "triton":
            given = arguments(leaves[0], own, GRID)
            names = ("columns", "values", "token_head", "frame_head")
            packed = pack_folds(own)._replace(**dict(zip(names, given[1:5], strict=True)))
            scores = score_packed(given[0], packed, given[5], triton=True)
        else:
            scores = reference.score(leaves[0], own, GRID)
        (torch.cat(scores).cpu().to(weights.dtype) * weights).sum().backward()
        grads = [leaf.grad.cpu() for leaf in leaves if leaf.grad is not None]
        assert len(grads) == 25
        # The op's own tensors: a head is one of them, and a budget for a single number is chance.
        heads = [torch.cat([g.flatten() for g in grads[i : i + 5]]) for i in (3, 8, 15, 20)]
        return [*grads[:3], *grads[13:15], *heads]

    ours = gradients("triton", video, torch.float32)
    plain = gradients("reference", video, dtype)
    exact = gradients("reference", video.double(), torch.float64)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert_within_budget(a, b, c)


def test_the_op_runs_the_kernels_on_cuda() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("cacovid::score", "CUDA")
    for name in ("_score_kept", "_score_columns_gradient"):
        assert has_kernel(f"cacovid::{name}", "Meta")
    given = arguments(draw_video(91, 64), [make_fold(64, 2, 8, (16, 16), False, 0)], GRID)
    token, frame, z, squares = _score_triton.kept(*given)
    fakes = _score_triton.kept(*(t.to("meta") for t in given[:5]), *given[5:])
    for real, fake in zip((token, frame, z, squares), fakes, strict=True):
        assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
    gradient = _score_triton.columns_gradient(given[0], z, given[5], 1)
    fake = _score_triton.columns_gradient(given[0].to("meta"), z.to("meta"), given[5], 1)
    assert (gradient.shape, gradient.dtype) == (fake.shape, fake.dtype)


@pytest.mark.skipif(DEVICE != "cuda", reason="no CUDA device")
def test_the_public_function_on_a_gpu() -> None:
    fold = make_fold(896, 2, 32, (32, 32), False, 0)
    video = draw_video(GRID.num_tokens, 896)
    on_gpu = cast(fold, torch.float32)
    on_gpu = dataclasses.replace(
        fold, columns=fold.columns.cuda(), values=fold.values.cuda(),
        token=HeadWeights(*(t.cuda() for t in fold.token)),
        frame=HeadWeights(*(t.cuda() for t in fold.frame)),
    )  # fmt: skip
    before = torch.cuda.get_sync_debug_mode()
    ops.score(video.cuda(), on_gpu, GRID, backend="triton")  # compiles, uploads the tables
    given = video.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token, frame = ops.score(given, on_gpu, GRID, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode(before)
    plain = reference.score(video, fold, GRID)
    exact = reference.score(video.double(), cast(fold, torch.float64), GRID)
    for ours, theirs, true in zip((token, frame), plain, exact, strict=True):
        assert_within_budget(ours.cpu(), theirs, true)


def test_heads_that_folds_share() -> None:
    """As those of one policy's questions: the kernels find the row of every fold."""
    first, second = (make_fold(64, 2, 8 + i, (16, 16), False, i) for i in (0, 1))
    check(
        draw_video(GRID.num_tokens, 64),
        [first, dataclasses.replace(second, token=first.token, frame=first.frame)],
        GRID,
        {**FUSED, "BLOCK_K": 64},
    )


@pytest.mark.parametrize("inter_frame", [False, True])
def test_columns_that_are_rounded_beforehand(
    inter_frame: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, and nothing for the launcher to convert."""
    # As on a GPU: the Triton form will serve.
    monkeypatch.setattr(sys.modules["cacovid.ops.score"], "_packed_form", lambda *_: "triton")
    folds = [make_fold(64, 2, 8 + i, (16, 16), inter_frame, i) for i in (0, 1)]
    video = draw_video(GRID.num_tokens, 64, torch.bfloat16).to(DEVICE)
    plain, rounded = pack_folds(folds), pack_folds(folds, torch.bfloat16)
    assert rounded.columns.dtype == torch.bfloat16 and rounded.columns.is_contiguous()
    leaf = dataclasses.replace(folds[0], columns=folds[0].columns.clone().requires_grad_())
    assert pack_folds(leaf, torch.bfloat16).columns.dtype == torch.float32
    config = {**(SPLIT if inter_frame else FUSED), "BLOCK_K": 64}
    sizes = [3, 21, 0, 4, 7, 1]
    results = [
        score_fwd_triton(
            video, *(t.to(DEVICE) for t in packed.tensors), sizes, *packed[4:], config=config
        )
        for packed in (plain, rounded)
    ]
    assert torch.equal(results[0].token, results[1].token)
    assert torch.equal(results[0].frame, results[1].frame)


@pytest.mark.skipif(
    not available()["cpu"].available, reason="the compiled form of the CPU is not there"
)
def test_rounded_columns_in_the_reference_and_under_a_gradient() -> None:
    """Nothing but the columns' own rounding: all else stays in float32."""
    fold = make_fold(64, 2, 8, (16, 16), True, 0)
    video = draw_video(GRID.num_tokens, 64, torch.bfloat16)
    rounded = pack_folds(fold)._replace(columns=fold.columns.T.bfloat16())
    same = dataclasses.replace(fold, columns=fold.columns.bfloat16().float())
    got = ops.score(video, rounded, GRID, backend="reference")
    wanted = reference.score(video, same, GRID)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    fake = torch.ops.cacovid.score(
        *(t.to("meta") for t in (video, *rounded.tensors)), [3, 21, 0, 4, 7, 0], *rounded[4:]
    )
    assert fake[0].dtype == fake[1].dtype == torch.float32
    gradients = []
    for packed, backend in ((rounded, "reference"), (pack_folds(same), "cpu")):
        leaf = video.clone().requires_grad_()
        token, frame = ops.score(leaf, packed, GRID, backend=backend)
        gradients.append(torch.autograd.grad(token.sum() + frame.sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("inter_frame", [False, True])
def test_a_gradient_under_compile(inter_frame: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_Score.apply(triton=True)` in one graph, forward and backward."""
    monkeypatch.setattr(
        configurations, "find",
        lambda op, *rest: DW if op == "score_dw" else SPLIT if op == "score_project" else FUSED,
    )  # fmt: skip
    given = arguments(
        draw_video(GRID.num_tokens, 64), [make_fold(64, 2, 8, (16, 16), inter_frame, 0)], GRID
    )
    leaves = [tensor.clone().requires_grad_() for tensor in given[1:5]]

    def step(video: Tensor, *tensors: Tensor) -> Tensor:
        packed = PackedFolds(*tensors, *given[6:])
        return torch.cat(score_packed(video, packed, given[5], triton=True))

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    weights = draw_video(1, GRID.num_tokens + GRID.num_frames)[0].to(DEVICE)
    results = []
    for function in (compiled, step):
        scores = function(given[0], *leaves)
        results.append([scores, *torch.autograd.grad(scores @ weights, leaves)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_too_many_slots_go_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _score_triton.serves([64, 1024], 64)
    assert not _score_triton.serves([64, 1025], 64)
    assert not _score_triton.serves([64], 257)
    # The public function, as where the tensors are on a GPU; then once is enough.
    op = sys.modules["cacovid.ops.score"]
    monkeypatch.setattr(type(op._SPEC), "choose", lambda *_: "triton")
    monkeypatch.setattr(_score_triton, "_warned", set())
    fold, video = make_fold(8, 1, 1025, (4, 4), False, 0), draw_video(4, 8)
    with pytest.warns(RuntimeWarning, match=r"1025 slots and 8 features; .* 1024 and 256"):
        got = ops.score(video, fold, [(1, 2, 2)])
    assert torch.equal(got[0], reference.score(video, fold, [(1, 2, 2)])[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.score(video, pack_folds(fold, torch.float32), [(1, 2, 2)])
    with pytest.raises(InvalidInputError, match=r"at most 1025 slots .*up to 1024"):
        ops.score(video, fold, [(1, 2, 2)], backend="triton")


def test_tables_partition_the_rows() -> None:
    """Every row in one tile; every frame's pieces are neighbours and sum to its tokens."""
    sizes = ((3, 21, 0), (4, 7, 1), (1, 1, 0), (2, 196, 1))
    for block in (1, 16, 64, 128):
        tiles, frames, pieces = tile_tables(sizes, (8, 10), 32, block, torch.device("cpu"))
        rows: list[int] = []
        counted = [0] * pieces
        for begin, end, fold, video, n, piece, slots, first_slot, first_column in tiles.tolist():
            assert 0 < end - begin <= block
            rows += range(begin, end)
            for row in range(begin, end):
                counted[piece + (row - video) // n - (begin - video) // n] += 1
            assert (slots, first_slot, first_column) == ((8, 0, 0), (10, 8, 40))[fold]
        assert rows == list(range(sum(t * n for t, n, _ in sizes)))
        assert min(counted) > 0
        place = 0
        for begin, end, fold, n in frames.tolist():
            assert begin == place and sum(counted[begin:end]) == n and fold in (0, 1)
            place = end
        assert place == pieces


def test_configurations_are_complete() -> None:
    default = configurations.read("default.json")
    for arch in ("sm_80", "sm_90", "sm_100"):
        assert set(default[arch]) >= {"score_fwd", "score_project", "score_dw"}
        for op in ("score_fwd", "score_project", "score_dw"):
            for dtype in ("float32", "float16", "bfloat16"):
                for columns in (32, 128, 192, 384, 1000):
                    for tokens in (1, 2000, 6272, 200704):
                        found = configurations._find(op, arch, "", dtype, columns, tokens)
                        assert not {"dtypes", "columns", "tokens"} & set(found)
    assert configurations.device_file("NVIDIA H200") == "nvidia-h200.json"


@pytest.mark.parametrize(("slots", "features"), [(98, 64), (80, 40)])
@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_few_tokens_take_low_tiles(
    slots: int, features: int, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both widths take blocks of 128 + 64 columns; 32 frames of 196 tokens are 49 high tiles."""
    monkeypatch.setattr(configurations, "architecture", lambda device: arch)
    for dtype in (torch.bfloat16, torch.float16):
        for tokens, rows in ((6272, 64), (8448, 64), (12544, 128)):
            video = torch.empty(tokens, 3584, dtype=dtype, device="meta")
            config = _configuration(video, slots, features, apart=False)
            assert config["FUSED"] and config["BLOCK_N"] == rows
            # Four warps hold 128 columns of 64 rows, and spill at 192.
            assert config["num_warps"] == 8


def test_errors_are_found_by_these_tests() -> None:
    """The comparison is not blind: a wrong weight is out of the budget."""
    fold = make_fold(128, 2, 8, (16, 16), False, 0)
    video = draw_video(GRID.num_tokens, 128)
    other = dataclasses.replace(fold, eps=1e-2)
    a, b = (scores(video, [f], GRID, FUSED) for f in (fold, other))
    assert largest_error(a.token, b.token) > 1e-4
