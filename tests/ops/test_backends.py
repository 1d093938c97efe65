"""The choice of a backend: automatic, by argument, by the environment, and its errors."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from cacovid import backends, ops
from cacovid.backends import Availability, available, choose
from cacovid.errors import InvalidInputError

COMPILED = ("triton", "cuda", "cpu")


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where every backend is there."""
    monkeypatch.delenv("CACOVID_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_states", {n: Availability(n, True) for n in backends.NAMES})


def test_every_backend_is_reported_with_a_reason() -> None:
    states = available()
    assert tuple(states) == backends.NAMES
    assert states["reference"].available
    for state in states.values():
        assert state.available == (state.reason == "")


@pytest.mark.usefixtures("everything")
def test_automatic_choice_prefers_the_fastest_of_the_device() -> None:
    assert choose("op", COMPILED, "cuda") == "triton"
    assert choose("op", ("cuda", "cpu"), "cuda") == "cuda"
    assert choose("op", COMPILED, "cpu") == "cpu"
    assert choose("op", (), "cpu") == "reference"
    assert choose("op", COMPILED, "xpu") == "reference"


@pytest.mark.usefixtures("everything")
def test_argument_is_met_exactly_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("op", COMPILED, "cuda", "cuda") == "cuda"
    assert choose("op", COMPILED, "cuda", "reference") == "reference"
    with pytest.raises(InvalidInputError, match="backend is 'fast'; expected one of triton"):
        choose("op", COMPILED, "cpu", "fast")
    with pytest.raises(InvalidInputError, match="op has no triton form; it has cpu, reference"):
        choose("op", ("cpu",), "cuda", "triton")
    with pytest.raises(InvalidInputError, match="needs tensors on cuda, but they are on cpu"):
        choose("op", COMPILED, "cpu", "cuda")
    monkeypatch.setitem(backends._states, "cuda", Availability("cuda", False, "no nvcc"))
    with pytest.raises(InvalidInputError, match="'cuda' of op is not available: no nvcc"):
        choose("op", COMPILED, "cuda", "cuda")


@pytest.mark.usefixtures("everything")
def test_environment_names_a_backend_for_the_ops_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CACOVID_BACKEND", "cpu")
    assert choose("op", COMPILED, "cpu") == "cpu"
    assert choose("op", (), "cpu") == "reference"
    assert choose("op", COMPILED, "cpu", "reference") == "reference"
    with pytest.raises(InvalidInputError, match="needs tensors on cpu"):
        choose("op", COMPILED, "cuda")
    monkeypatch.setenv("CACOVID_BACKEND", "reference")
    assert choose("op", COMPILED, "cuda") == "reference"


@pytest.mark.usefixtures("everything")
def test_missing_kernels_of_a_gpu_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setitem(backends._states, "cuda", Availability("cuda", False, "no nvcc"))
    with pytest.warns(RuntimeWarning, match="No kernels of cacovid for cuda .* no nvcc"):
        assert choose("op", ("cuda", "cpu"), "cuda") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("other", ("cuda", "cpu"), "cuda") == "reference"
        assert choose("op", (), "cuda") == "reference"


def test_unknown_backend_stops_an_op() -> None:
    with pytest.raises(InvalidInputError, match="expected one of triton"):
        ops.select_tokens(torch.zeros(4), None, [(1, 2, 2)], 0.5, backend="numpy")


_WITHOUT_LIBRARY = """
import pathlib, warnings
from cacovid import _extension
_extension._FOLDER = pathlib.Path("/nowhere")
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import torch
    from cacovid import ops
    ops.select_tokens(torch.zeros(4), None, [(1, 2, 2)], 0.5)
reasons = [str(w.message) for w in told if "cacovid" in str(w.message)]
assert len(reasons) == 1 and "_C.so is missing" in reasons[0], reasons
# The same ops as torch.ops, bound to the reference.
scores = torch.tensor([0.0, 3.0, 1.0, 2.0])
keep = torch.ops.cacovid.select_tokens(scores, None, [1, 4, 2, 2, 2, 4], [1.5])
assert keep.tolist() == [1, 3], keep
def step(scores, rows):
    keep = ops.select_tokens(scores, None, [(1, 2, 2)], 0.5, policy_share=1.0)
    return ops.gather(rows, keep), ops.ocss_sample(scores, [(1, 2, 2)], 0.5, 3, seed=1)
rows, drawn = step(scores, torch.eye(4))
assert rows.argmax(1).tolist() == [1, 3] and drawn[0].tolist() == [1, 3]
drawn = torch.ops.cacovid.ocss_sample(scores, [1, 4, 2, 1, 67108864], 3, 1, 0)
assert drawn.shape == (3, 2)
assert torch.equal(torch.ops.cacovid.gather(rows, torch.tensor([1])), rows[1:])
try:
    ops.select_tokens(scores, None, [(1, 2, 2)], 0.5, backend="cpu")
except ValueError as error:
    assert "not available" in str(error)
else:
    raise AssertionError("a forced backend that is missing was not refused")
"""


def test_reference_serves_where_the_compiled_part_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_LIBRARY],
        capture_output=True,
        text=True,
        cwd=Path(backends.__file__).parents[1],
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
