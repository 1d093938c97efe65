"""`score`: the folded form against loops over tokens, gradients, and wrong input."""

import dataclasses
import math

import pytest
import torch

from cacovid import Grid, ops, reference
from cacovid.errors import InvalidInputError
from cacovid.testing import cases_of

SIZES = [(3, 2, 2), (1, 1, 3)]


def example(inter_frame=True, dtype=torch.float64):
    """The arguments of the case with a fold for each of two videos."""
    case = next(c for c in cases_of("score") if c.name == "ragged_3_slots_inter_frame_own")
    (_, folds, _), _ = case.make()
    video = torch.randn(15, 24, generator=torch.Generator().manual_seed(1), dtype=dtype)
    folds = [_cast(fold, dtype) for fold in folds[:2]]
    if not inter_frame:
        folds = [dataclasses.replace(f, columns=f.columns[:, :-16]) for f in folds]
    return video, folds, Grid(SIZES)


def _cast(fold, dtype):
    def head(weights):
        return type(weights)(*(w.to(dtype) for w in weights))

    return dataclasses.replace(
        fold, columns=fold.columns.to(dtype), values=fold.values.to(dtype),
        token=head(fold.token), frame=head(fold.frame),
    )  # fmt: skip


def silu(x):
    return x / (1 + math.exp(-x))


def by_loops(x, size, fold):
    """One video, token by token and number by number."""
    tokens, per_frame = size[0] * size[1] * size[2], size[1] * size[2]
    slots, features = fold.values.shape
    each = slots // fold.heads
    rows = x.tolist()
    columns, values = fold.columns.T.tolist(), fold.values.tolist()
    z = []
    for row in rows:
        rms = math.sqrt(sum(v * v for v in row) / len(row) + fold.eps)
        z.append([sum(a * b for a, b in zip(row, c, strict=True)) / rms for c in columns])
    u = []
    for i in range(tokens):
        weights = []
        for h in range(fold.heads):
            e = [math.exp(v) for v in z[i][h * each : (h + 1) * each]]
            weights += [v / sum(e) for v in e]
        row = []
        for p in range(features):
            value = z[i][slots + p] + sum(
                w * values[s][p] for s, w in enumerate(weights)
            )
            if fold.inter_frame:
                value += z[i][slots + features + p]
                if i >= per_frame:
                    value -= z[i - per_frame][slots + features + p]
            row.append(value)
        u.append(row)

    def head(row, weights):
        bias, w1, b1, w2, b2 = (w.tolist() for w in weights)
        hidden = [silu(a + b) for a, b in zip(row, bias, strict=True)]
        hidden = [
            silu(sum(a * b for a, b in zip(hidden, r, strict=True)) + c)
            for r, c in zip(w1, b1, strict=True)
        ]
        return sum(a * b for a, b in zip(hidden, w2[0], strict=True)) + b2[0]

    half = fold.token.input_bias.shape[0]
    token = [head(row[:half], fold.token) for row in u]
    frame = []
    for t in range(size[0]):
        part = u[t * per_frame : (t + 1) * per_frame]
        mean = [sum(row[p] for row in part) / per_frame for p in range(half, features)]
        frame.append(head(mean, fold.frame))
    return token, frame


@pytest.mark.parametrize("inter_frame", [False, True])
@pytest.mark.parametrize("bound", [None, 0.5])
def test_equals_loops(inter_frame, bound):
    video, folds, grid = example(inter_frame)
    expected = [
        by_loops(part, size, fold)
        for part, size, fold in zip(video.split([12, 3]), SIZES, folds, strict=True)
    ]
    folds = [dataclasses.replace(fold, score_bound=bound) for fold in folds]
    for got, which in zip(reference.score(video, folds, grid), (0, 1), strict=True):
        wanted = torch.tensor([v for pair in expected for v in pair[which]], dtype=torch.float64)
        if bound is not None:
            wanted = bound * torch.tanh(wanted / bound)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_gradients():
    video, folds, grid = example()
    columns = folds[0].columns.clone().requires_grad_()
    values = folds[0].values.clone().requires_grad_()

    def run(columns, values):
        fold = dataclasses.replace(folds[0], columns=columns, values=values)
        return ops.score(video, fold, grid)

    assert torch.autograd.gradcheck(run, (columns, values))


def test_low_precision_video_is_widened():
    video, folds, grid = example(dtype=torch.float32)
    token, frame = reference.score(video.bfloat16(), folds, grid)
    expected, _ = reference.score(video.bfloat16().float(), folds, grid)
    assert token.dtype == frame.dtype == torch.float32 and torch.equal(token, expected)


def test_wrong_input():
    video, folds, grid = example()
    for arguments, message in (
        ((video, folds[:1], grid), "1 folds were given for 2 videos"),
        ((video[:-1], folds, grid), "has 15 tokens"),
        ((video[:, :-1], folds, grid), "hidden size 23, the fold 24"),
        ((video, [dataclasses.replace(f, heads=5) for f in folds], grid), "5 heads"),
        (
            (video, [dataclasses.replace(f, columns=f.columns[:, :-1]) for f in folds], grid),
            "columns are",
        ),
        (
            (video, dataclasses.replace(folds[0], token=folds[0].token._replace(
                input_bias=torch.zeros(3))), grid),
            "heads take 3 and 8",
        ),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            ops.score(*arguments)
