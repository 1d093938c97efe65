"""`gather` and `select_and_gather` through their public names, gradients included."""

from __future__ import annotations

import pytest
import torch

from cacovid import ops, reference
from cacovid.errors import InvalidInputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("module", [reference, ops])
def test_the_gradient_adds_up_where_a_row_is_repeated(module: object, dtype: torch.dtype) -> None:
    rows = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    keep = torch.tensor([4, 1, 4, 0])
    out = module.gather(rows, keep)  # type: ignore[attr-defined]
    assert torch.equal(out, rows.detach()[[4, 1, 4, 0]])
    weights = torch.arange(12, dtype=dtype).view(4, 3)
    (gradient,) = torch.autograd.grad((out * weights).sum(), rows)
    expected = torch.zeros(5, 3, dtype=dtype)
    for place, row in enumerate(keep.tolist()):
        expected[row] += weights[place]
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("gather", [reference.gather, ops.gather])
def test_gradcheck(gather: object) -> None:
    rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([3, 0, 0])
    assert torch.autograd.gradcheck(lambda x: gather(x, keep), (rows,))  # type: ignore[operator]


def test_the_gradient_of_select_and_gather_reaches_the_kept_rows_alone() -> None:
    scores = torch.tensor([0.0, 5.0, 1.0, 4.0], requires_grad=True)
    rows = torch.randn(4, 3, requires_grad=True)
    keep, kept = reference.select_and_gather(
        scores, None, rows, [(1, 2, 2)], 0.5, policy_share=1.0
    )
    assert keep.tolist() == [1, 3]
    kept.sum().backward()
    assert rows.grad is not None and rows.grad.sum(1).tolist() == [0.0, 3.0, 0.0, 3.0]
    assert scores.grad is None


@pytest.mark.parametrize("module", [reference, ops])
def test_rows_of_other_tokens_are_refused(module: object) -> None:
    call = module.select_and_gather  # type: ignore[attr-defined]
    for rows in (torch.zeros(5, 2), torch.zeros(4)):
        with pytest.raises(InvalidInputError, match="one row for each of the 4 video tokens"):
            call(torch.zeros(4), None, rows, [(1, 2, 2)], 0.5)


def test_the_reference_refuses_by_itself() -> None:
    rows, keep = torch.zeros(4, 3), torch.tensor([0, 1])
    with pytest.raises(InvalidInputError, match=r"expected \[S, D\]"):
        reference.gather(rows[0], keep)
    with pytest.raises(InvalidInputError, match="expected floating point or int64"):
        reference.gather(rows.bool(), keep)
    with pytest.raises(InvalidInputError, match="expected int64"):
        reference.gather(rows, keep.int())
    with pytest.raises(InvalidInputError, match="on cpu and keep on meta"):
        reference.gather(rows, keep.to("meta"))
    with pytest.raises(InvalidInputError, match=r"keep\[1\] is 4; rows has 4 rows"):
        reference.gather(rows, torch.tensor([0, 4]))
