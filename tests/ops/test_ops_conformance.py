"""Every op has all its stations: public function, documentation, reference, fake, forms, case."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from cacovid import ops, reference
from cacovid.backends import available
from cacovid.ops._registry import TABLE
from cacovid.testing import CASES, cases_of
from cacovid.testing.budgets import assert_within_budget, cast
from cacovid.testing.cases import tensors_of

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = (
    "select_tokens",
    "gather",
    "select_and_gather",
    "ocss_sample",
    "frame_sample",
    "pack_rollouts",
    "bernoulli_sample",
    "reinforce_loss",
    "cpo_loss",
    "density_peaks",
    "farthest_point",
    "score",
)
#: Ops whose results are floating point sums; all others give the reference's values exactly.
ROUNDED = ("score", "cpo_loss", "reinforce_loss")
SCHEMAS = [name for name, spec in TABLE.items() if spec.schema is not None]


def test_the_table_holds_the_public_ops() -> None:
    assert set(TABLE) == set(PUBLIC) == set(ops.__all__)
    assert {"gather", "ocss_sample", "score", "select_tokens"} <= set(SCHEMAS)


@pytest.mark.parametrize("name", PUBLIC)
def test_function_and_reference_agree_on_their_arguments(name: str) -> None:
    function = inspect.signature(getattr(ops, name)).parameters
    expected = inspect.signature(getattr(reference, name)).parameters
    assert list(function)[-1] == "backend"
    assert function["backend"].kind is inspect.Parameter.KEYWORD_ONLY
    assert function["backend"].default is None
    assert list(function)[:-1] == list(expected)
    for argument, parameter in expected.items():
        assert function[argument].default == parameter.default, argument
        assert function[argument].kind == parameter.kind, argument


@pytest.mark.parametrize("name", PUBLIC)
def test_documentation(name: str) -> None:
    function = getattr(ops, name)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, section
    for argument in inspect.signature(function).parameters:
        assert f"    {argument}: " in text, argument


@pytest.mark.parametrize("name", PUBLIC)
def test_every_case_equals_the_reference(name: str) -> None:
    assert cases_of(name)
    for case in cases_of(name):
        positional, named = case.make()
        got = tensors_of(getattr(ops, name)(*positional, **named))
        plain = tensors_of(getattr(reference, name)(*positional, **named))
        assert got and len(got) == len(plain)
        wide = cast((positional, named), torch.float64) if name in ROUNDED else None
        exact = tensors_of(getattr(reference, name)(*wide[0], **wide[1])) if wide else plain
        for a, b, c in zip(got, plain, exact, strict=True):
            assert a.dtype == b.dtype, case.id
            if name in ROUNDED:
                assert_within_budget(a, b, c)
            else:
                assert torch.equal(a, b), case.id


def test_no_case_stands_twice() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", SCHEMAS)
def test_forms_are_where_the_table_says(name: str) -> None:
    spec = TABLE[name]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"cacovid::{name}", "CompositeExplicitAutograd")  # the reference
    assert has_kernel(f"cacovid::{name}", "Meta")  # the fake
    for backend, key, source in (("cpu", "CPU", "cpp"), ("cuda", "CUDA", "cu")):
        if backend not in spec.backends:
            continue
        text = (ROOT / "csrc" / backend / f"{name}.{source}").read_text()
        assert f'm.impl("{name}"' in text
        if available()[backend].available:
            assert has_kernel(f"cacovid::{name}", key)
    if "triton" in spec.backends:
        assert (ROOT / "kernels" / "triton" / f"{name}.py").is_file()
        assert has_kernel(f"cacovid::{name}", "CUDA")


@pytest.mark.parametrize("name", SCHEMAS)
def test_compiled_ops_are_benched(name: str) -> None:
    assert f"def test_{name}(" in (ROOT / "bench" / "test_bench_cpu_ops.py").read_text()


def test_the_page_lists_the_forms_of_every_op() -> None:
    page = (ROOT / "docs" / "using-the-ops.md").read_text()
    for name, spec in TABLE.items():
        assert f"| `{name}` | {', '.join(spec.backends) or 'none'} |" in page
