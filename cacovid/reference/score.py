"""Scores of the fused policy from a question that is folded into the weights.

ALGORITHMS 1.1, `CrossAttentionPolicy`: with `x̂ = RMSNorm(x)`, attention of a video token to the
question's slots is `softmax(x̂ W_q kᵀ / sqrt(d))`. For a given question `W_q kᵀ` is a matrix of few
columns, and RMSNorm is a factor of the row: everything that reads the video is one product
`x @ columns`. Where a question has more slots than `d`, that matrix is wider than `W_q`: then
`x̂ W_q` comes first and its few numbers meet the keys, the same sum in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.types import Grid


class HeadWeights(NamedTuple):
    """A bias, then Linear `P -> P`, SiLU, Linear `P -> 1`.

    Args:
        input_bias: `[P]`, added before the first SiLU.
        hidden: `[P, P]`, as `torch.nn.Linear` stores it.
        hidden_bias: `[P]`.
        output: `[1, P]`.
        output_bias: `[1]`.
    """

    input_bias: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    output: Tensor
    output_bias: Tensor


@dataclass(frozen=True)
class ScoreFold:
    """The question side of the fused policy, folded for one question.

    Dimensions: `D` hidden size, `H` heads, `Q` slots, `P_t` token features, `P_f` frame features,
    `P = P_t + P_f`.

    Args:
        columns: `[D, H*Q + P]`, or `[D, H*Q + 2*P]` with the inter-frame columns: head after head
            `W_q kᵀ / sqrt(d)`, then `W_x`, then the projection whose difference to the previous
            frame counts. The RMSNorm's weight is in them. With `keys`, `H*d` columns
            `W_q / sqrt(d)` in the place of the first `H*Q`.
        values: `[H*Q, P]`: `v W_o`.
        heads: `H`.
        token: Head of the token scores.
        frame: Head of the frame scores.
        eps: The RMSNorm's epsilon.
        score_bound: Scores are `bound * tanh(score / bound)`; None: unbounded.
        keys: `[H*Q, d]`, head after head `k`; None: they are folded into the columns.
    """

    columns: Tensor
    values: Tensor
    heads: int
    token: HeadWeights
    frame: HeadWeights
    eps: float = 1e-6
    score_bound: float | None = None
    keys: Tensor | None = None

    @property
    def features(self) -> int:
        """`P`."""
        return self.values.shape[1]

    @property
    def inter_frame(self) -> bool:
        """Whether there are inter-frame columns."""
        return self.columns.shape[1] == self.attending + 2 * self.features

    @property
    def attending(self) -> int:
        """Columns that the attention's logits are made of: `H*Q`, with keys `H*d`."""
        return self.values.shape[0] if self.keys is None else self.heads * self.keys.shape[1]


def score(
    video: Tensor,
    fold: ScoreFold | Sequence[ScoreFold],
    grid: Grid | Iterable[Sequence[int]],
) -> tuple[Tensor, Tensor]:
    """Token and frame scores of packed videos.

    Runs in the fold's dtype, float32 or float64; lower precisions of `video` are widened, and
    autocast changes nothing.
    Differentiable with respect to the fold's tensors and `video`. Deterministic.

    Args:
        video: `[N, D]` float, the video tokens' embeddings.
        fold: The folded weights of the question; one for all videos, or one per video.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.

    Returns:
        Token scores `[N]` and frame scores `[F]`, in the fold's dtype.

    Raises:
        InvalidInputError: for shapes that do not fit the grid or the fold, or a number of folds
            that is not the number of videos.
    """
    grid = Grid.of(grid)
    folds = [fold] * grid.num_videos if isinstance(fold, ScoreFold) else list(fold)
    check_score(video, folds, grid)
    tokens, frames = [], []
    for rows, size, own in zip(
        video.split(list(grid.tokens_per_video)), grid.sizes, folds, strict=True
    ):
        with torch.autocast("cpu" if rows.is_meta else rows.device.type, enabled=False):
            token, frame = _score_video(rows, size, own)
        tokens.append(token)
        frames.append(frame)
    return torch.cat(tokens), torch.cat(frames)


def check_score(video: Tensor, folds: Sequence[ScoreFold], grid: Grid) -> None:
    """Checks what needs no look at the values.

    Args:
        video: The video tokens' embeddings.
        folds: One for each video.
        grid: The packed videos.

    Raises:
        InvalidInputError: for shapes, dtypes or devices that do not fit each other.
    """
    if len(folds) != grid.num_videos:
        raise InvalidInputError(
            f"{len(folds)} folds were given for {grid.num_videos} videos; give one, or one each"
        )
    check_video(video, grid)
    for index, fold in enumerate(folds):
        if index == 0 or fold is not folds[index - 1]:
            check_fold(fold, video)


def check_video(video: Tensor, grid: Grid) -> None:
    """Raises:
    InvalidInputError: for embeddings that do not fit the grid, or no floating point numbers.
    """
    if video.dim() != 2 or video.shape[0] != grid.num_tokens:
        raise InvalidInputError(
            f"video is {tuple(video.shape)}; the grid {grid.sizes} has {grid.num_tokens} tokens: "
            f"expected [{grid.num_tokens}, D]"
        )
    if not video.is_floating_point():
        raise InvalidInputError(f"video is {video.dtype}; expected floating point embeddings")


def _score_video(x: Tensor, size: tuple[int, int, int], fold: ScoreFold) -> tuple[Tensor, Tensor]:
    x = x.to(fold.columns.dtype)
    attending, features = fold.attending, fold.features
    factor = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + fold.eps)
    z = (x @ fold.columns) * factor
    logits = z[:, :attending].unflatten(1, (fold.heads, -1))
    if fold.keys is not None:
        logits = logits_of_keys(logits, fold.keys)
    u = z[:, attending : attending + features]
    u = u + torch.softmax(logits, dim=-1).flatten(1) @ fold.values
    if fold.inter_frame:
        u = u + difference_to_previous_frame(z[:, attending + features :], size[1] * size[2])
    return heads(u, size[0], fold.token, fold.frame, fold.score_bound)


def logits_of_keys(queries: Tensor, keys: Tensor) -> Tensor:
    """`[N, H, Q]` from queries `[N, H, d]` and keys `[H*Q, d]`."""
    per_head = keys.unflatten(0, (queries.shape[1], -1))
    return (queries.transpose(0, 1) @ per_head.transpose(1, 2)).transpose(0, 1)


def difference_to_previous_frame(projected: Tensor, tokens_per_frame: int) -> Tensor:
    """`p_i - p_(i-n)`; in the first frame `p_i` itself.

    Args:
        projected: `[N, P]`, frame after frame.
        tokens_per_frame: `n`.
    """
    before = F.pad(projected, (0, 0, tokens_per_frame, 0))[: projected.shape[0]]
    return projected - before


def heads(
    u: Tensor, frames: int, token: HeadWeights, frame: HeadWeights, score_bound: float | None
) -> tuple[Tensor, Tensor]:
    """Token scores `[N]` and frame scores `[t]` from the features `u` `[N, P_t + P_f]`."""
    width = token.input_bias.shape[0]
    mean = u[:, width:].unflatten(0, (frames, -1)).mean(dim=1)
    scores = _head(u[:, :width], token), _head(mean, frame)
    if score_bound is None:
        return scores
    return tuple(score_bound * torch.tanh(s / score_bound) for s in scores)  # type: ignore[return-value]


def _head(u: Tensor, weights: HeadWeights) -> Tensor:
    hidden = F.silu(u + weights.input_bias)
    hidden = F.silu(F.linear(hidden, weights.hidden, weights.hidden_bias))
    return F.linear(hidden, weights.output, weights.output_bias)[:, 0]


def check_fold(fold: ScoreFold, video: Tensor) -> None:
    """Raises:
    InvalidInputError: for tensors that do not fit each other or the video's hidden size, or stand
        on another device.
    """
    slots, features = fold.values.shape
    keys = fold.keys
    if keys is not None and (keys.dim() != 2 or keys.shape[0] != slots or keys.shape[1] < 1):
        raise InvalidInputError(
            f"the fold's keys are {tuple(keys.shape)} for values {tuple(fold.values.shape)}; "
            f"expected [H*Q, d]"
        )
    widths = (fold.attending + features, fold.attending + 2 * features)
    if fold.columns.dim() != 2 or fold.columns.shape[1] not in widths or slots % fold.heads:
        raise InvalidInputError(
            f"the fold's columns are {tuple(fold.columns.shape)} for values "
            f"{tuple(fold.values.shape)} and {fold.heads} heads; expected [D, H*Q + P], or "
            f"[D, H*Q + 2*P] with inter-frame columns, and with keys [H*Q, d] H*d in the place "
            f"of H*Q"
        )
    if fold.columns.shape[0] != video.shape[1]:
        raise InvalidInputError(
            f"video has hidden size {video.shape[1]}, the fold {fold.columns.shape[0]}; use the "
            f"policy with its own base model"
        )
    split = (fold.token.input_bias.shape[0], fold.frame.input_bias.shape[0])
    if sum(split) != features:
        raise InvalidInputError(
            f"the heads take {split[0]} and {split[1]} features; the fold has {features}"
        )
    for name, head, width in (
        ("token", fold.token, split[0]),
        ("frame", fold.frame, split[1]),
    ):
        shapes = tuple(tuple(weight.shape) for weight in head)
        if shapes != ((width,), (width, width), (width,), (1, width), (1,)):
            raise InvalidInputError(
                f"the {name} head's tensors are {shapes}; expected [P], [P, P], [P], [1, P] and "
                f"[1] with P = {width}"
            )
    given = [fold.columns, fold.values, *fold.token, *fold.frame]
    for tensor in given if keys is None else [*given, keys]:
        if tensor.device != video.device:
            raise InvalidInputError(
                f"video is on {video.device} and a tensor of the fold on {tensor.device}; move "
                f"them to one device"
            )
