"""The cooperative algorithms of the CUDA kernels give the reference's integers.

They are templates over a group of threads; here the group is threads of the host.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cacovid.reference import bernoulli_sample
from cacovid.reference.ocss import ocss_plan, ocss_sample
from cacovid.reference.select_tokens import select_plan, select_tokens
from cacovid.testing import Case, cases_of
from cacovid.types import Grid

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
LARGEST = 1000  # tokens of a case: the host's threads switch at every barrier

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    assert COMPILER is not None
    path = tmp_path_factory.mktemp("block") / "block.so"
    command = [COMPILER, "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
    command += [f"-I{ROOT / 'csrc' / 'include'}", "-Wall", "-Wextra", "-Werror"]
    command += [str(Path(__file__).parent / "block_on_host.cpp"), "-o", str(path)]
    subprocess.run(command, check=True, timeout=120)
    yield ctypes.CDLL(str(path))


def _small(op: str) -> list[Case]:
    position = {"select_tokens": 2, "ocss_sample": 1}[op]
    return [c for c in cases_of(op) if c.make()[0][position].num_tokens <= LARGEST]


def _integers(values: list[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@pytest.mark.parametrize("threads", [8])
@pytest.mark.parametrize("case", _small("select_tokens"), ids=lambda case: case.id)
def test_selection(library: ctypes.CDLL, case: Case, threads: int) -> None:
    (tokens, frames, grid, retention), settings = case.make()
    expected = select_tokens(tokens, frames, grid, retention, **settings)
    plans = select_plan(
        grid,
        retention,
        settings.get("policy_share", 0.5),
        settings.get("max_frame_ratio"),
    )
    keep = torch.full_like(expected, -1)
    kept = 0
    for i, p in enumerate(plans):
        begin, first = grid.host_video_offsets[i], grid.host_video_frame_offsets[i]
        library.select_video(
            threads,
            _pointer(tokens[begin:]),
            _pointer(None if frames is None else frames[first:]),
            _integers([p.frames, p.tokens, p.total, p.budget, p.scale, p.cap]),
            ctypes.c_double(p.clip),
            ctypes.c_int64(begin),
            _pointer(keep[kept:]),
        )
        kept += p.total
    assert torch.equal(keep, expected)


@pytest.mark.parametrize("threads", [8])
@pytest.mark.parametrize("case", _small("ocss_sample"), ids=lambda case: case.id)
def test_rollouts(library: ctypes.CDLL, case: Case, threads: int) -> None:
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
            threads,
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
