"""Every op compiled, under autocast, on strided and empty input; its gradients; what it refuses.

One case of each op stands for it, in every form and, where there is a GPU, on it. An op or a form
that is added is tested here without being named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cacovid import ops
from cacovid.backends import available
from cacovid.errors import InvalidInputError
from cacovid.ops._registry import TABLE
from cacovid.testing import Case, cases_of
from cacovid.testing.budgets import assert_within_budget, cast, map_tensors
from cacovid.testing.cases import tensors_of
from cacovid.types import Prompt

#: Where a form's tensors stand.
DEVICES = {"reference": "cpu", "cpu": "cpu", "cuda": "cuda", "triton": "cuda"}


def form_of(name: str, backend: str) -> Any:
    """The parameters of a test: skipped where the form cannot run."""
    state, marks = available()[backend], []
    if not state.available:
        marks.append(pytest.mark.skip(reason=state.reason))
    if DEVICES[backend] == "cuda":
        marks.append(pytest.mark.gpu)
        if not torch.cuda.is_available():
            marks.append(pytest.mark.skip(reason="no CUDA device"))
    return pytest.param(name, backend, marks=marks, id=f"{name}-{backend}")


FORMS = [
    form_of(name, backend)
    for name, spec in TABLE.items()
    for backend in (*spec.backends, "reference")
]
#: One form of each op on each device: the one that is chosen there.
CHOSEN = [
    form_of(name, next((b for b in spec.backends if DEVICES[b] == device), "reference"))
    for name, spec in TABLE.items()
    for device in ("cpu", "cuda")
    if device == "cpu" or any(DEVICES[b] == device for b in spec.backends)
]
#: Ops of one tensor: there is no other device that a second one could be on.
ALONE = {"ocss_sample", "frame_sample", "bernoulli_sample", "farthest_point", "density_peaks"}

#: Ops that a gradient flows through; the results of the others are choices.
DIFFERENTIABLE = {
    "gather", "select_and_gather", "pack_rollouts", "score", "cpo_loss", "reinforce_loss"
}  # fmt: skip


def sample(name: str) -> Case:
    """The case that stands for an op: packed videos where the op takes some."""
    cases = cases_of(name)
    return next((case for case in cases if case.name.startswith(("ragged", "packed"))), cases[-1])


def changed(
    name: str, change: Callable[[Tensor], Tensor], number: int | None = None, device: str = "cpu"
) -> Any:
    """The case's arguments on a device, of which one tensor (by its number) or all are changed."""
    positional, named = sample(name).make()
    count = iter(range(1000))

    def one(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device)
        return change(tensor) if number in (None, next(count)) else tensor

    def of(value: Any) -> Any:
        if isinstance(value, Prompt):  # of ops that have no form for another device
            return dataclasses.replace(value, embeds=one(value.embeds))
        return map_tensors(value, one)

    return tuple(of(value) for value in positional), {key: of(v) for key, v in named.items()}


def first(name: str) -> int:
    """The number of the tensor that is spoilt: the first, but the rollouts of a prompt."""
    return 1 if name == "pack_rollouts" else 0


def assert_same(name: str, got: Any) -> None:
    """The result is that of the unchanged case, by the budget where it is a rounded sum."""
    positional, named = sample(name).make()
    plain = tensors_of(getattr(ops, name)(*positional, **named, backend="reference"))
    wide = cast((positional, named), torch.float64)
    rounded = name in ("score", "cpo_loss", "reinforce_loss")
    exact = tensors_of(getattr(ops, name)(*wide[0], **wide[1])) if rounded else plain
    got = tensors_of(got)
    assert got and len(got) == len(plain)
    for mine, eager, true in zip(got, plain, exact, strict=True):
        assert mine.dtype == eager.dtype
        if rounded:
            assert_within_budget(mine.cpu(), eager, true)
        else:
            assert torch.equal(mine.cpu(), eager)


@pytest.mark.parametrize(("name", "backend"), CHOSEN)
def test_fullgraph(name: str, backend: str) -> None:
    device = DEVICES[backend]
    positional, named = changed(name, lambda tensor: tensor, device=device)
    places = [i for i, value in enumerate(positional) if isinstance(value, Tensor)]

    def call(tensors: list[Tensor]) -> Any:
        given = list(positional)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return getattr(ops, name)(*given, **named)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got = compiled([positional[i] for i in places])
    assert all(tensor.device.type == device for tensor in tensors_of(got))
    assert_same(name, got)


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_autocast_changes_nothing(name: str, backend: str) -> None:
    positional, named = changed(name, lambda tensor: tensor, device=DEVICES[backend])
    with torch.autocast(DEVICES[backend], dtype=torch.bfloat16):
        got = getattr(ops, name)(*positional, **named, backend=backend)
    assert_same(name, got)


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_strided_input_is_read_right(name: str, backend: str) -> None:
    positional, named = changed(
        name, lambda t: torch.stack([t, t], dim=-1)[..., 0], device=DEVICES[backend]
    )
    strided = [tensor for value in positional for tensor in _given(value)]
    assert not any(tensor.is_contiguous() for tensor in strided if tensor.numel() > 1)
    assert_same(name, getattr(ops, name)(*positional, **named, backend=backend))


def _given(value: Any) -> Iterator[Tensor]:
    """The tensors of an argument that `changed` reaches."""
    if isinstance(value, Prompt):
        yield value.embeds
    else:
        found: list[Tensor] = []
        map_tensors(value, lambda tensor: (found.append(tensor), tensor)[1])
        yield from found


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_gradients_flow_where_they_can(name: str, backend: str) -> None:
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    positional, named = changed(name, leaf, device=DEVICES[backend])
    results = tensors_of(getattr(ops, name)(*positional, **named, backend=backend))
    flowing = [result.sum() for result in results if result.requires_grad]
    assert bool(flowing) == (name in DIFFERENTIABLE)
    if flowing:
        torch.stack(flowing).sum().backward()
        gradients = [tensor.grad for tensor in leaves if tensor.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_empty_input(name: str, backend: str) -> None:
    device = DEVICES[backend]
    positional, named = changed(name, lambda tensor: tensor[:0], first(name), device)
    if name == "gather":  # nothing of nothing
        rows, keep = positional
        empty = ops.gather(rows, keep[:0], backend=backend)
        assert empty.shape == (0, rows.shape[1]) and empty.dtype == rows.dtype
        if device == "cuda":
            return  # an index that is out of range stops a GPU and the process with it
    with pytest.raises(InvalidInputError, match=r"\d"):
        getattr(ops, name)(*positional, **named, backend=backend)


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_wrong_dtypes_are_refused(name: str, backend: str) -> None:
    wrong = {"gather": torch.bool, "pack_rollouts": torch.float32}.get(name, torch.int64)
    positional, named = changed(
        name, lambda tensor: tensor.to(wrong), first(name), DEVICES[backend]
    )
    with pytest.raises(InvalidInputError, match=f"{wrong}.* expected"):
        getattr(ops, name)(*positional, **named, backend=backend)


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_wrong_shapes_are_refused(name: str, backend: str) -> None:
    positional, named = changed(name, lambda tensor: tensor[None], first(name), DEVICES[backend])
    with pytest.raises(InvalidInputError, match=r"\(1, "):
        getattr(ops, name)(*positional, **named, backend=backend)


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_tensors_of_two_devices_are_refused(name: str, backend: str) -> None:
    positional, named = sample(name).make()
    count = len([tensor for value in positional for tensor in _given(value)])
    assert (count == 1) == (name in ALONE)
    device = DEVICES[backend]
    other = "cpu" if device == "cuda" else "meta"
    for number in range(1, count):
        positional, named = changed(name, lambda tensor: tensor.to(other), number, device)
        with pytest.raises(InvalidInputError, match=f"on {other}"):
            getattr(ops, name)(*positional, **named, backend=backend)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_counts_that_are_no_integers_are_refused(backend: str | None) -> None:
    scores, rows, grid = torch.rand(8), torch.rand(6, 4), [(2, 2, 2)]
    for value in (1.5, 5.0, "2", None, True, torch.tensor(2)):
        for name, call in (
            ("rollouts", lambda v: ops.ocss_sample(scores, grid, 0.5, v, seed=1, backend=backend)),
            ("rollouts", lambda v: ops.frame_sample(scores[:2], grid, 0.5, v, seed=1,
                                                    backend=backend)),
            ("rollouts", lambda v: ops.bernoulli_sample(scores, v, seed=1, backend=backend)),
            ("k", lambda v: ops.farthest_point(rows, v, backend=backend)),
            ("k", lambda v: ops.density_peaks(rows, v, backend=backend)),
            ("neighbours", lambda v: ops.density_peaks(rows, 2, v, backend=backend)),
        ):  # fmt: skip
            with pytest.raises(InvalidInputError, match=rf"{name} is .*; expected an integer"):
                call(value)
    assert len(ops.farthest_point(rows, np.int64(2), backend=backend)) == 2
