"""Gradients of `score` by hand: what torch.compile can follow, and nothing of size N×D is kept.

Backends may share it: only the product `dzᵀ x` reads the video a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cacovid.ops import _score_triton
from cacovid.reference.score import (
    HeadWeights,
    ScoreFold,
    difference_to_previous_frame,
    logits_of_keys,
)


def score_backward(
    grad_token: Tensor,
    grad_frame: Tensor,
    video: Tensor,
    folds: Sequence[ScoreFold],
    sizes: Sequence[tuple[int, int, int]],
    *,
    of_video: bool,
    kept: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients with respect to the tensors of `cacovid.ops.score.PackedFolds`, and the video.

    Args:
        grad_token: `[N]`, of the token scores.
        grad_frame: `[F]`, of the frame scores.
        video: `[N, D]` float.
        folds: The folds.
        sizes: Frames, tokens of a frame and number of its fold, for each video.
        of_video: Whether the video's gradient is wanted.
        kept: What the Triton form kept: `X W` before the rows' factors `[N, C]`, and the rows' sums
            of squares `[N]`. Its kernel then multiplies for the gradient of the columns, and the
            video is neither widened nor read otherwise. What is left is done on a few columns by
            plain PyTorch: some dozen launches, beside the many prefills of a training step.

    Returns:
        Gradients of `video` (or None), `columns`, `values`, `token_head`, `frame_head` and `keys`
        (or None).
    """
    columns = [torch.zeros_like(fold.columns.T) for fold in folds]
    values = [torch.zeros_like(fold.values) for fold in folds]
    keys = [None if fold.keys is None else torch.zeros_like(fold.keys) for fold in folds]
    tokens: list[Tensor | None] = [None] * len(folds)
    frames: list[Tensor | None] = [None] * len(folds)
    videos, scaled = [], []
    row, frame = 0, 0
    for t, n, v in sizes:
        rows = slice(row, row + t * n)
        x = video[rows] if kept and not of_video else video[rows].to(folds[v].columns.dtype)
        own = _of_video(
            grad_token[rows],
            grad_frame[frame : frame + t],
            x,
            _projected(x, folds[v]) if kept is None else (kept[0][rows], kept[1][rows]),
            folds[v],
            t,
            of_video,
        )
        values[v] = values[v] + own[2]
        if kept is None:
            columns[v] = columns[v] + own[1].T @ x
        else:
            scaled.append(F.pad(own[1], (0, kept[0].shape[1] - own[1].shape[1])))
        tokens[v], frames[v] = _added(tokens[v], own[3]), _added(frames[v], own[4])
        if own[5] is not None:
            keys[v] = _added(keys[v], own[5])
        if own[0] is not None:
            videos.append(own[0].to(video.dtype))
        row, frame = row + t * n, frame + t
    if kept is not None:
        flat = [number for size in sizes for number in size]
        padded = _score_triton.columns_gradient(video, torch.cat(scaled), flat, len(folds))
        columns = [own[: fold.columns.shape[1]] for own, fold in zip(padded, folds, strict=True)]
    return (
        torch.cat(videos) if of_video else None,
        torch.cat(columns),
        torch.cat(values),
        torch.stack([_or_zeros(g, f.token) for g, f in zip(tokens, folds, strict=True)]),
        torch.stack([_or_zeros(g, f.frame) for g, f in zip(frames, folds, strict=True)]),
        torch.cat(given) if (given := [g for g in keys if g is not None]) else None,
    )


def _projected(x: Tensor, fold: ScoreFold) -> tuple[Tensor, Tensor]:
    return x @ fold.columns, x.square().sum(dim=1)


def _of_video(
    grad_token: Tensor,
    grad_frame: Tensor,
    x: Tensor,
    projected: tuple[Tensor, Tensor],
    fold: ScoreFold,
    frames: int,
    of_video: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    attending, features = fold.attending, fold.features
    per_frame = x.shape[0] // frames
    factor = torch.rsqrt(projected[1][:, None] / x.shape[1] + fold.eps)
    z = projected[0][:, : fold.columns.shape[1]] * factor
    logits = z[:, :attending].unflatten(1, (fold.heads, -1))
    attention = torch.softmax(
        logits if fold.keys is None else logits_of_keys(logits, fold.keys), dim=-1
    )
    u = z[:, attending : attending + features] + attention.flatten(1) @ fold.values
    if fold.inter_frame:
        u = u + difference_to_previous_frame(z[:, attending + features :], per_frame)
    width = fold.token.input_bias.shape[0]
    mean = u[:, width:].unflatten(0, (frames, -1)).mean(dim=1)

    du_token, token_head = _head(u[:, :width], fold.token, grad_token, fold.score_bound)
    du_mean, frame_head = _head(mean, fold.frame, grad_frame, fold.score_bound)
    du = torch.cat([du_token, (du_mean / per_frame).repeat_interleave(per_frame, 0)], dim=1)
    weighted = (du @ fold.values.T).unflatten(1, (fold.heads, -1))
    dlogits = attention * (weighted - (attention * weighted).sum(dim=-1, keepdim=True))
    dkeys = None
    if fold.keys is not None:
        by_head = dlogits.transpose(0, 1)  # [H, N, Q]
        dkeys = (by_head.transpose(1, 2) @ logits.transpose(0, 1)).flatten(0, 1)
        dlogits = (by_head @ fold.keys.unflatten(0, (fold.heads, -1))).transpose(0, 1)
    parts = [dlogits.flatten(1), du]
    if fold.inter_frame:  # each projection counts once here, once against the next frame
        parts.append(du - F.pad(du, (0, 0, 0, per_frame))[per_frame:])
    dz = torch.cat(parts, dim=1)
    scaled = dz * factor
    dx = None
    if of_video:
        along = (dz * z).sum(dim=1, keepdim=True) * factor.square() / x.shape[1]
        dx = scaled @ fold.columns.T - x * along
    return dx, scaled, attention.flatten(1).T @ du, token_head, frame_head, dkeys


def _head(u: Tensor, head: HeadWeights, grad: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """Gradients of a head's features `[M, P]`, and of its weights as one row."""
    first = u + head.input_bias
    hidden = F.silu(first)
    second = F.linear(hidden, head.hidden, head.hidden_bias)
    active = F.silu(second)
    if bound is not None:
        score = F.linear(active, head.output, head.output_bias)[:, 0]
        grad = grad * (1.0 - torch.tanh(score / bound).square())
    dsecond = grad[:, None] * head.output * _silu_slope(second)
    dfirst = (dsecond @ head.hidden) * _silu_slope(first)
    weights = (
        dfirst.sum(0),
        (dsecond.T @ hidden).flatten(),
        dsecond.sum(0),
        grad @ active,
        grad.sum(0, keepdim=True),
    )
    return dfirst, torch.cat(weights)


def _silu_slope(x: Tensor) -> Tensor:
    share = torch.sigmoid(x)
    return share * (1.0 + x * (1.0 - share))


def _added(sum_: Tensor | None, other: Tensor) -> Tensor:
    return other if sum_ is None else sum_ + other


def _or_zeros(grad: Tensor | None, head: HeadWeights) -> Tensor:
    # A fold that no video uses.
    return torch.cat([w.flatten() for w in head]).zero_() if grad is None else grad
