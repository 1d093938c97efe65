"""The CUDA ops, launches and all, on an emulated device: the reference's results, bit for bit.

`tests/ops/test_ops_cuda.py` asks the same of a real one.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cacovid import ops, reference
from cacovid.backends import available
from cacovid.ops import _registry
from cacovid.testing import EXACT, Case, cases_of
from cacovid.testing.budgets import assert_within_budget
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid
from tests.compile import emulated_cuda

_CPU = available()["cpu"]
pytestmark = [
    pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="no C++ compiler on PATH"),
    pytest.mark.skipif(not _CPU.available, reason=_CPU.reason or "available"),
]

OPS = (*EXACT, "cpo_loss")
LARGEST = 40_000  # numbers of a case: every thread of every block takes its turn


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], int]:
    """Loads the ops under the emulator's namespace; tells how many launches there were."""
    path = emulated_cuda.build(tmp_path_factory.mktemp("emulated"))
    library = torch.library.Library(emulated_cuda.NAMESPACE, "DEF")
    for name in OPS:
        library.define(name + str(_registry.TABLE[name].schema))
    torch.ops.load_library(str(path))
    counter = ctypes.CDLL(str(path)).emulated_launches
    counter.restype = ctypes.c_int64
    counter.library = library  # the ops live as long as it does
    return counter


@pytest.fixture(autouse=True)
def _on_the_device(launches: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled form of every op is the emulated one."""
    space = getattr(torch.ops, emulated_cuda.NAMESPACE)
    for name in OPS:
        module = importlib.import_module(f"cacovid.ops.{name}")
        monkeypatch.setattr(module, "_OP", getattr(space, name).default)
    # What is not written must not be what a freed tensor left there: NaN or the largest integer.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def _numbers(case: Case) -> int:
    positional, named = case.make()
    given = [*positional, *named.values()]
    return sum(t.numel() for t in given if isinstance(t, Tensor))


@pytest.mark.parametrize(
    "case",
    [c for op in EXACT for c in cases_of(op) if _numbers(c) <= LARGEST],
    ids=lambda case: case.id,
)
def test_equals_the_reference(case: Case, launches: Callable[[], int]) -> None:
    positional, named = case.make()
    expected = getattr(reference, case.op)(*positional, **named)
    before = launches()
    got = getattr(ops, case.op)(*positional, **named, backend="cpu")
    pairs = list(zip(got, expected, strict=True)) if isinstance(got, tuple) else [(got, expected)]
    assert launches() > before or not any(plain.numel() for _, plain in pairs)
    for mine, plain in pairs:
        assert mine.dtype == plain.dtype
        assert torch.equal(mine, plain)


def _pack() -> Grid:
    """More videos than a launch takes, and one of which a frame does not fit into its memory."""
    small = [(1 + i % 3, 2, 1 + i % 4) for i in range(70)]
    return Grid([*small[:20], (2, 50, 60), *small[20:]])


@pytest.mark.parametrize(
    ("grid", "rollouts"),
    [(_pack(), 1), (_pack(), 40), (Grid([(140, 1, 4)]), 20)],  # the last: a block for each frame
    ids=["greedy", "pack", "long"],
)
def test_token_rollouts(grid: Grid, rollouts: int) -> None:
    scores = token_scores(grid.num_tokens, "ties")
    named: dict[str, Any] = {"seed": 2**64 - 1, "offset": 2**32 - 3}
    expected = reference.ocss_sample(scores, grid, 0.1, rollouts, **named)
    got = ops.ocss_sample(scores, grid, 0.1, rollouts, **named, backend="cpu")
    assert torch.equal(got, expected)


def test_frame_rollouts_of_a_pack() -> None:
    grid = Grid([(9, 1, 1)] * 30 + [(1700, 1, 1)] + [(5, 1, 1)] * 40)
    scores = token_scores(grid.num_frames, "normal")
    for rollouts in (1, 9):
        expected = reference.frame_sample(scores, grid, 0.1, rollouts, seed=3, offset=2**32 - 3)
        got = ops.frame_sample(scores, grid, 0.1, rollouts, seed=3, offset=2**32 - 3, backend="cpu")
        assert torch.equal(got, expected)


def test_coins_of_a_pack() -> None:
    grid = _pack()
    logits = token_scores(grid.num_tokens, "normal")
    expected = reference.bernoulli_sample(logits, 19, grid=grid, seed=5, offset=7)
    got = ops.bernoulli_sample(logits, 19, grid=grid, seed=5, offset=7, backend="cpu")
    assert torch.equal(got, expected)


def test_selection_of_a_pack() -> None:
    grid = Grid([*_pack().sizes[:40], (2, 100, 115)])  # the last takes a launch of its own
    tokens, frames = (token_scores(n, "ties") for n in (grid.num_tokens, grid.num_frames))
    rows = token_scores(grid.num_tokens * 9, "normal").view(-1, 9)
    positions = torch.arange(3 * grid.num_tokens).view(3, -1)
    arguments = (tokens, frames, rows, grid, 0.2)
    expected = reference.select_and_gather(*arguments, position_ids=positions)
    got = ops.select_and_gather(*arguments, position_ids=positions, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("op", ["farthest_point", "density_peaks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_every_dtype(op: str, dtype: torch.dtype) -> None:
    device = getattr(torch.ops, emulated_cuda.NAMESPACE)
    for count, width, k in ((130, 40, 20), (40, 7, 40)):
        normal = token_scores(count * width, "normal").view(count, width).to(dtype)
        for rows in (normal, normal.round(), normal[torch.arange(count) * 7 % 13]):
            more = (5,) if op == "density_peaks" else ()
            got = getattr(device, op)(rows, k, *more)
            assert torch.equal(got, getattr(reference, op)(rows.float(), k, *more))


def test_many_rows_take_a_launch_each(launches: Callable[[], int]) -> None:
    rows = token_scores(700 * 400, "normal").view(700, 400)
    before = launches()
    got = ops.farthest_point(rows, 4, backend="cpu")
    assert launches() - before == 4 + 3
    assert torch.equal(got, reference.farthest_point(rows, 4))


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("grid", ["one_token", "ragged"])
def test_loss_and_gradient(grid: str, kl_weight: float) -> None:
    counts = GRIDS[grid].num_tokens, GRIDS[grid].num_frames
    scores = [token_scores(n, "normal", seed) for seed, n in enumerate(counts * 2)]
    masks = [torch.rand(40, n, generator=torch.Generator().manual_seed(n)) < 0.1 for n in counts]
    rewards = [token_scores(40, "normal", seed) for seed in (8, 9)]

    def gradients(dtype: torch.dtype, backend: str) -> list[Tensor]:
        given = [t.to(dtype, copy=True) for t in scores]
        leaves = [t.requires_grad_() for t in given[:2]]
        earned = [t.to(dtype) for t in rewards]
        inputs = (*leaves, *given[2:], *masks, *earned)
        loss = ops.cpo_loss(*inputs, kl_weight=kl_weight, backend=backend)
        return [*(t.detach() for t in loss), *torch.autograd.grad(loss.total, leaves)]

    plain = gradients(torch.float32, "reference")
    exact = gradients(torch.float64, "reference")
    for mine, eager, true in zip(gradients(torch.float32, "cpu"), plain, exact, strict=True):
        assert_within_budget(mine, eager, true)


def test_launches(launches: Callable[[], int]) -> None:
    """As many as csrc/README.md says, for a pack of different videos."""
    grid = GRIDS["ragged"]
    tokens, frames = (token_scores(n, "normal") for n in (grid.num_tokens, grid.num_frames))
    rows = torch.randn(grid.num_tokens, 4)
    masks = [torch.rand(9, n) < 0.2 for n in (grid.num_tokens, grid.num_frames)]
    rewards = tokens[:9]
    of = {
        "select_tokens": lambda: ops.select_tokens(tokens, frames, grid, 0.1, backend="cpu"),
        "select_and_gather": lambda: ops.select_and_gather(
            tokens, frames, rows, grid, 0.1, backend="cpu"
        ),
        "gather": lambda: ops.gather(rows, torch.tensor([3, 1]), backend="cpu"),
        "ocss_sample": lambda: ops.ocss_sample(tokens, grid, 0.1, 20, seed=1, backend="cpu"),
        "frame_sample": lambda: ops.frame_sample(frames, grid, 0.1, 20, seed=1, backend="cpu"),
        "bernoulli_sample": lambda: ops.bernoulli_sample(
            tokens, 20, grid=grid, seed=1, backend="cpu"
        ),
        "cpo_loss": lambda: ops.cpo_loss(
            tokens, frames, tokens, frames, *masks, rewards, rewards, backend="cpu"
        ),
    }
    found = {}
    for name, call in of.items():
        before = launches()
        call()
        found[name] = launches() - before
    assert found == dict.fromkeys(of, 1) | {"cpo_loss": 3}
