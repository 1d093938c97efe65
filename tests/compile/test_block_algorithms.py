"""The cooperative algorithms of the CUDA kernels give the reference's integers.

They are templates over a group of threads; here the threads take turns on the host.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cacovid import settings
from cacovid.reference import bernoulli_sample
from cacovid.reference.cpo_loss import part_and_gradient
from cacovid.reference.density_peaks import density_peaks
from cacovid.reference.farthest_point import farthest_point
from cacovid.reference.frame_sample import frame_plan, frame_sample
from cacovid.reference.ocss import ocss_plan, ocss_sample
from cacovid.reference.select_tokens import SelectPlan, select_plan, select_tokens
from cacovid.testing import Case, cases_of
from cacovid.testing.budgets import assert_within_budget
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid, PerVideo

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
THREADS = 8
LARGEST = 1000  # tokens of a case: its threads switch at every barrier

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    assert COMPILER is not None
    path = tmp_path_factory.mktemp("block") / "block.so"
    command = [COMPILER, "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared"]
    command += [f"-I{ROOT / 'csrc' / 'include'}", "-Wall", "-Wextra", "-Werror"]
    if (sanitize := settings.get("CACOVID_SANITIZE")) != "none":
        command += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g"]
    command += [str(Path(__file__).parent / "block_on_host.cpp"), "-o", str(path)]
    subprocess.run(command, check=True, timeout=600)
    yield ctypes.CDLL(str(path))


def _small(op: str) -> list[Case]:
    position = {"select_tokens": 2, "ocss_sample": 1, "frame_sample": 1}[op]
    return [c for c in cases_of(op) if c.make()[0][position].num_tokens <= LARGEST]


def _integers(values: list[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _select(
    library: ctypes.CDLL,
    threads: int,
    plans: Sequence[SelectPlan],
    tokens: Tensor,
    frames: Tensor | None,
    rows: Tensor | None = None,
    positions: Tensor | None = None,
    splits: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kept tokens, their rows and their positions, by groups of host threads."""
    kept = sum(p.total for p in plans)
    keep = torch.full((kept,), -1)
    width, axes = 0 if rows is None else rows.shape[1], 0 if positions is None else len(positions)
    kept_rows, kept_positions = torch.zeros(kept, width), torch.full((axes, kept), -1)
    begins = [0, 0, 0]
    for p in plans:
        library.select_video(
            threads,
            splits,
            _pointer(tokens),
            _pointer(frames),
            _integers([p.frames, p.tokens, p.total, p.budget, p.scale, p.cap]),
            ctypes.c_double(p.clip),
            _integers(begins),
            ctypes.c_int64(len(tokens)),
            ctypes.c_int64(kept),
            _pointer(rows),
            ctypes.c_int64(width),
            _pointer(positions),
            ctypes.c_int64(axes),
            _pointer(keep),
            _pointer(kept_rows),
            _pointer(kept_positions),
        )
        done = (p.frames * p.tokens, p.frames, p.total)
        begins = [a + b for a, b in zip(begins, done, strict=True)]
    return keep, kept_rows, kept_positions


@pytest.mark.parametrize("case", _small("select_tokens"), ids=lambda case: case.id)
def test_selection(library: ctypes.CDLL, case: Case) -> None:
    (tokens, frames, grid, retention), settings = case.make()
    expected = select_tokens(tokens, frames, grid, retention, **settings)
    share, ratio = settings.get("policy_share", 0.5), settings.get("max_frame_ratio")
    plans = select_plan(grid, retention, share, ratio)
    assert torch.equal(_select(library, THREADS, plans, tokens, frames)[0], expected)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("width", [1, 3, 9])
def test_rows_and_positions_follow_the_selection(
    library: ctypes.CDLL, splits: int, width: int
) -> None:
    grid = GRIDS["ragged"]
    tokens, frames = (token_scores(n, "ties") for n in (grid.num_tokens, grid.num_frames))
    rows = token_scores(grid.num_tokens * width, "normal").view(-1, width)
    positions = torch.arange(3 * grid.num_tokens).view(3, -1) * 7
    plans = select_plan(grid, 0.3)
    keep = select_tokens(tokens, frames, grid, 0.3)
    got = _select(library, THREADS, plans, tokens, frames, rows, positions, splits)
    for a, b in zip(got, (keep, rows[keep], positions[:, keep]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("size", "retention", "share"),
    [
        ((4096, 1, 3), 0.4, 0.5),
        ((4096, 1, 3), 0.2, 0.5),  # fewer chosen tokens than frames
        ((4100, 1, 1), 0.5, 1.0),
        ((3, 48, 48), 0.1, 0.5),
        ((2, 48, 48), 0.9, 0.3),
    ],
)
def test_the_largest_videos(
    library: ctypes.CDLL, size: tuple[int, int, int], retention: float, share: float
) -> None:
    grid = Grid([size])
    tokens, frames = (
        token_scores(n, kind)
        for n, kind in ((grid.num_tokens, "normal"), (grid.num_frames, "ties"))
    )
    plans = select_plan(grid, retention, share)
    expected = select_tokens(tokens, frames, grid, retention, policy_share=share)
    assert torch.equal(_select(library, 1, plans, tokens, frames)[0], expected)


@pytest.mark.parametrize("case", _small("frame_sample"), ids=lambda case: case.id)
def test_frame_rollouts(library: ctypes.CDLL, case: Case) -> None:
    (frames, grid, ratio, rollouts), settings = case.make()
    _compare_frames(library, THREADS, frames, grid, ratio, rollouts, **settings)


@pytest.mark.parametrize("kind", ["normal", "peaked", "ties"])
def test_frame_rollouts_of_long_videos(library: ctypes.CDLL, kind: str) -> None:
    # Hundreds of frames reach the cap, each on a level of its own.
    grid = Grid([(1000, 1, 1), (40, 1, 1)])
    frames = token_scores(grid.num_frames, kind) * 3.0
    _compare_frames(library, 1, frames, grid, 0.1, 3, seed=5, offset=2**32 - 1)


def _compare_frames(
    library: ctypes.CDLL,
    threads: int,
    frames: Tensor,
    grid: Grid,
    ratio: PerVideo,
    rollouts: int,
    *,
    seed: int,
    offset: int,
) -> None:
    expected = frame_sample(frames, grid, ratio, rollouts, seed=seed, offset=offset)
    mask = torch.zeros_like(expected)
    for i, p in enumerate(frame_plan(grid, ratio, rollouts)):
        first = grid.host_video_frame_offsets[i]
        library.frame_video(
            threads,
            _pointer(frames[first:]),
            _integers([p.frames, p.choose, p.cap, p.floor]),
            ctypes.c_int64(rollouts),
            ctypes.c_uint64(seed),
            ctypes.c_uint32((offset + i) & 0xFFFFFFFF),
            ctypes.c_int64(mask.shape[1]),
            _pointer(mask[0, first:]),
        )
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("case", _small("ocss_sample"), ids=lambda case: case.id)
def test_rollouts(library: ctypes.CDLL, case: Case) -> None:
    (tokens, grid, ratio, rollouts), settings = case.make()
    expected = ocss_sample(tokens, grid, ratio, rollouts, **settings)
    plans = ocss_plan(
        grid, ratio, settings.get("subspace_factor", 2.0), settings.get("max_subspace_prob")
    )
    drawn = torch.full_like(expected, -1)
    column = 0
    for i, p in enumerate(plans):
        begin = grid.host_video_offsets[i]
        library.ocss_video(
            THREADS,
            _pointer(tokens[begin:]),
            _integers([p.frames, p.tokens, p.keep, p.subspaces, p.cap]),
            ctypes.c_int64(rollouts),
            ctypes.c_uint64(settings["seed"]),
            ctypes.c_uint32((settings["offset"] + i) & 0xFFFFFFFF),
            ctypes.c_int64(begin),
            _pointer(drawn[0, column:]),
            ctypes.c_int64(drawn.shape[1]),
        )
        column += p.frames * p.keep
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("case", cases_of("bernoulli_sample"), ids=lambda case: case.id)
def test_coins(library: ctypes.CDLL, case: Case) -> None:
    (logits, rollouts), named = case.make()
    expected = bernoulli_sample(logits, rollouts, **named)
    grid = named.get("grid") or Grid([(1, 1, len(logits))])
    drawn = torch.zeros_like(expected)
    for i, count in enumerate(grid.tokens_per_video):
        begin = grid.host_video_offsets[i]
        library.bernoulli_video(
            _pointer(logits[begin:]),
            ctypes.c_int64(count),
            ctypes.c_int64(rollouts),
            ctypes.c_uint64(named["seed"]),
            ctypes.c_uint32((named["offset"] + i) & 0xFFFFFFFF),
            _pointer(drawn[0, begin:]),
            ctypes.c_int64(drawn.shape[1]),
        )
    assert torch.equal(drawn, expected)
BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: -16}


def _rows(kind: str, count: int, width: int) -> Tensor:
    rows = token_scores(count * width, "normal", seed=count).view(count, width)
    if kind == "integers":
        return (rows * 2.0).round()
    if kind == "copies":
        return rows[torch.arange(count) * 7 % max(1, count // 2)]
    if kind == "tiny":
        return rows * 1e-30
    if kind == "far":  # densities below what float64 holds
        return rows * 60.0
    if kind == "huge":
        return rows * 1e25
    return rows.to({"bfloat16": torch.bfloat16, "float16": torch.float16}.get(kind, rows.dtype))


ROWS = [
    (kind, count, width)
    for kind in ("normal", "integers", "copies", "tiny", "far", "huge", "bfloat16", "float16")
    for count, width in ((1, 3), (7, 8), (40, 17), (130, 24))
]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("kind", "count", "width"), ROWS)
def test_farthest_rows(
    library: ctypes.CDLL, kind: str, count: int, width: int, groups: int
) -> None:
    rows = _rows(kind, count, width)
    for k in {1, (count + 1) // 2, count}:
        keep = torch.full((k,), -1)
        library.farthest_rows(
            16,
            ctypes.c_int64(groups),
            BITS[rows.dtype],
            _pointer(rows),
            *map(ctypes.c_int64, (count, width, k)),
            _pointer(keep),
        )
        assert torch.equal(keep, farthest_point(rows, k))


def test_sums_over_many_rows(library: ctypes.CDLL) -> None:
    rows = _rows("integers", 600, 9)  # three pieces
    keep = torch.full((5,), -1)
    sizes = map(ctypes.c_int64, (600, 9, 5))
    library.farthest_rows(16, ctypes.c_int64(4), 32, _pointer(rows), *sizes, _pointer(keep))
    assert torch.equal(keep, farthest_point(rows, 5))


@pytest.mark.parametrize(
    ("kind", "count", "width", "neighbours"),
    [
        (*rows, neighbours)
        for rows in ROWS
        for neighbours in (1, 4, 1000)
        if neighbours <= 4 or rows[1] <= 40  # every distance is a round of its own
    ],
)
def test_density_peaks(
    library: ctypes.CDLL, kind: str, count: int, width: int, neighbours: int
) -> None:
    rows = _rows(kind, count, width)
    for k in {1, (count + 1) // 2, count}:
        keep = torch.full((k,), -1)
        sizes = map(ctypes.c_int64, (count, width, min(neighbours, count), k))
        library.density_rows(16, BITS[rows.dtype], _pointer(rows), *sizes, _pointer(keep))
        assert torch.equal(keep, density_peaks(rows, k, neighbours))


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(
    ("count", "rollouts", "shift"), [(1, 1, 0.1), (33, 7, 0.1), (70, 5, 3.0), (64, 40, 30.0)]
)
def test_loss_and_gradient(
    library: ctypes.CDLL, count: int, rollouts: int, shift: float, balanced: bool, kl_weight: float
) -> None:
    scores = token_scores(count, "normal") * 2.0
    old = scores + shift * token_scores(count, "normal", 1)
    masks = token_scores(rollouts * count, "normal", 2).view(rollouts, count) > 0.3
    masks[0] = True  # a share of 1: nothing is dropped
    rewards = token_scores(rollouts, "ties", 3)
    loss, gradient = torch.full((1,), torch.nan), torch.full((count,), torch.nan)
    library.cpo_part(
        THREADS,
        *map(_pointer, (scores, old, masks, rewards)),
        ctypes.c_int64(count),
        ctypes.c_int64(rollouts),
        ctypes.c_bool(balanced),
        (ctypes.c_double * 3)(0.2, 0.28, kl_weight),
        _pointer(loss),
        _pointer(gradient),
    )
    plain, exact = (
        part_and_gradient(
            scores.to(dtype),
            old.to(dtype),
            masks,
            rewards.to(dtype),
            (0.2, 0.28),
            kl_weight,
            balanced,
        )
        for dtype in (torch.float32, torch.float64)
    )
    assert_within_budget(loss[0], plain[0], exact[0])
    assert_within_budget(gradient, plain[1], exact[1])
