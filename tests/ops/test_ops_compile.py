"""Schemas, fakes and torch.compile of the compiled ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cacovid import ops
from cacovid.backends import available
from cacovid.ops._registry import TABLE
from cacovid.ops.frame_sample import flat_plan as frame_integers
from cacovid.ops.ocss_sample import flat_plan as ocss_integers
from cacovid.ops.score import pack_folds
from cacovid.ops.select_tokens import flat_plan as select_numbers
from cacovid.reference.frame_sample import frame_plan
from cacovid.reference.ocss import ocss_plan
from cacovid.reference.select_tokens import select_plan
from cacovid.testing import cases_of
from cacovid.testing.budgets import map_tensors
from cacovid.testing.cases import GRIDS, token_scores
from cacovid.types import Grid

EXACT = (
    "select_tokens",
    "ocss_sample",
    "gather",
    "density_peaks",
    "farthest_point",
    "frame_sample",
    "bernoulli_sample",
)


def _schema_arguments() -> list[tuple[str, tuple[Any, ...]]]:
    """Arguments of `torch.ops.cacovid.*` on small ragged videos."""
    grid = Grid([(3, 3, 3), (1, 1, 1), (2, 1, 7)])
    scores, frames = token_scores(grid.num_tokens, "ties"), token_scores(grid.num_frames, "normal")
    selection = select_numbers(select_plan(grid, 0.4))
    rollouts = ocss_integers(ocss_plan(grid, [0.3, 1.0, 0.2]))
    (_, folds, _), _ = next(c for c in cases_of("score") if c.name.endswith("frame_own")).make()
    packed, bounded = pack_folds(folds[:3]), pack_folds(folds[:3])._replace(score_bound=2.5)
    (_, folds, _), _ = next(c for c in cases_of("score") if c.name.endswith("keys_own")).make()
    keys = pack_folds(folds[:3])
    video = torch.randn(grid.num_tokens, 24)
    sizes = [3, 9, 0, 1, 1, 2, 2, 7, 1]
    return [
        ("score", (video, *packed[:4], sizes, *packed[4:])),
        ("score", (video.bfloat16(), *bounded[:4], sizes, *bounded[4:])),
        ("score", (video, *keys[:4], sizes, *keys[4:])),
        ("select_tokens", (scores, frames, *selection)),
        ("select_tokens", (scores, None, *selection)),
        ("ocss_sample", (scores, rollouts, 4, -7, 3)),
        ("bernoulli_sample", (scores, [27, 1, 14], 4, -7, 3)),
        ("cpo_loss", (*cases_of("cpo_loss")[0].make()[0], 0.2, 0.28, 0.1)),
        ("frame_sample", (frames, frame_integers(frame_plan(grid, 0.2, 4)), 4, -7, 3)),
        ("select_and_gather", (scores, frames, video, None, *selection)),
        ("select_and_gather", (scores, None, video.bfloat16(), torch.arange(42), *selection)),
        ("select_and_gather", (scores, None, video, torch.ones(3, 42).long(), *selection)),
        ("density_peaks", (torch.randn(9, 5), 4, 3)),
        ("farthest_point", (torch.randn(9, 5), 4)),
        ("gather", (torch.randn(9, 5), torch.tensor([0, 3, 8]))),
        ("gather", (torch.randn(9, 5).bfloat16(), torch.tensor([], dtype=torch.int64))),
    ]


def test_every_schema_is_checked() -> None:
    assert {op for op, _ in _schema_arguments()} == {n for n, s in TABLE.items() if s.schema}


@pytest.mark.parametrize(("op", "arguments"), _schema_arguments())
def test_opcheck(op: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.cacovid, op).default, arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("op", "arguments"), _schema_arguments())
def test_opcheck_on_a_gpu(op: str, arguments: tuple[Any, ...]) -> None:
    backend = next(b for b in TABLE[op].backends if b in ("triton", "cuda"))
    if not available()[backend].available:
        pytest.skip(available()[backend].reason)
    on_device = map_tensors(arguments, lambda tensor: tensor.cuda())
    torch.library.opcheck(getattr(torch.ops.cacovid, op).default, on_device)


@pytest.mark.parametrize(
    "case",
    [case for op in EXACT for case in cases_of(op)],
    ids=lambda case: case.id,
)
def test_fake_has_the_result_s_shape(case: Any) -> None:
    positional, named = case.make()
    function = getattr(ops, case.op)
    real = function(*positional, **named)
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in positional]
        fake = function(*faked, **named)
    assert isinstance(fake, Tensor)
    assert fake.shape == real.shape and fake.dtype == real.dtype and fake.device == real.device
    assert fake.stride() == real.stride()


def test_fullgraph_from_scores_to_rows() -> None:
    grid = GRIDS["ragged"]
    count = 14 * 5 * 7

    def step(tokens: Tensor, frames: Tensor, rows: Tensor, retention: float) -> tuple[Tensor, ...]:
        keep = ops.select_tokens(tokens, frames, grid, retention)
        drawn = ops.ocss_sample(
            tokens[:count], [(14, 5, 7)], [0.1], 3, seed=2**64 - 1, offset=5
        )  # a grid made inside the graph
        return keep, ops.gather(rows, keep), drawn

    tokens = token_scores(grid.num_tokens, "normal")
    frames = token_scores(grid.num_frames, "normal")
    rows = torch.randn(grid.num_tokens, 6, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for retention in (0.1, 0.5):
        expected = step(tokens, frames, rows, retention)
        got = compiled(tokens, frames, rows, retention)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
        (gradient,) = torch.autograd.grad(got[1].sum(), rows)
        kept = torch.zeros(grid.num_tokens).index_fill(0, got[0], 1.0)
        assert torch.equal(gradient, kept[:, None].expand_as(gradient))


@pytest.mark.parametrize("op", sorted(name for name, spec in TABLE.items() if spec.schema))
def test_shapes_without_values(op: str) -> None:
    """Tensors on the meta device have the shapes that real ones have."""
    positional, named = cases_of(op)[0].make()
    real = getattr(ops, op)(*positional, **named)
    positional, named = map_tensors((positional, named), lambda tensor: tensor.to("meta"))
    found = getattr(ops, op)(*positional, **named)
    for mine, expected in zip(
        found if isinstance(found, tuple) else (found,),
        real if isinstance(real, tuple) else (real,),
        strict=True,
    ):
        assert mine.is_meta and mine.shape == expected.shape and mine.dtype == expected.dtype
