"""Folds of `score` as its schema takes them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cacovid.reference.score import HeadWeights, ScoreFold


class PackedFolds(NamedTuple):
    """Folds of one policy as the schema takes them: few tensors, one after another (`pack_folds`).

    Dimensions: `V` folds, `S` their slots in all (`H*Q` of each fold), `P = P_t + P_f` features,
    `C` columns in all.

    Args:
        columns: `[C, D]`: the columns of each fold as contiguous rows, fold after fold; in the
            folds' dtype, or rounded to that of the videos. With `keys`, a fold's first `H*d` are
            those of the queries.
        values: `[S, P]`, fold after fold.
        token_head: `[V, P_t*P_t + 3*P_t + 1]`: input bias, hidden matrix, hidden bias, output,
            output bias of each fold, flat.
        frame_head: `[V, P_f*P_f + 3*P_f + 1]`, likewise.
        slots: `H*Q` of each fold.
        token_features: `P_t`.
        heads: `H`.
        inter_frame: Whether there are inter-frame columns.
        eps: The RMSNorm's epsilon.
        score_bound: Scores are `bound * tanh(score / bound)`; None: unbounded.
        keys: `[S, d]`, fold after fold; None: they are folded into the columns.
    """

    columns: Tensor
    values: Tensor
    token_head: Tensor
    frame_head: Tensor
    slots: list[int]
    token_features: int
    heads: int
    inter_frame: bool
    eps: float
    score_bound: float | None
    keys: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Columns, values and both heads, and keys where there are any."""
        return self[:4] if self.keys is None else (*self[:4], self.keys)

    def with_tensors(self, tensors: Sequence[Tensor]) -> PackedFolds:
        """The same settings with other `tensors` of the same shapes."""
        columns, values, token_head, frame_head, *keys = tensors
        return self._replace(
            columns=columns,
            values=values,
            token_head=token_head,
            frame_head=frame_head,
            keys=keys[0] if keys else None,
        )


def pack(folds: Sequence[ScoreFold]) -> PackedFolds:
    """Folds that are alike but for the number of slots, one after another. Differentiable."""
    first = folds[0]
    return PackedFolds(
        columns=_joined([fold.columns.T for fold in folds]),
        values=_joined([fold.values for fold in folds]),
        token_head=_flat_heads([fold.token for fold in folds]),
        frame_head=_flat_heads([fold.frame for fold in folds]),
        slots=[fold.values.shape[0] for fold in folds],
        token_features=first.token.input_bias.shape[0],
        heads=first.heads,
        inter_frame=first.inter_frame,
        eps=first.eps,
        score_bound=first.score_bound,
        keys=None if first.keys is None else _joined([f.keys for f in folds if f.keys is not None]),
    )


def alike(folds: Sequence[ScoreFold]) -> bool:
    def kind(fold: ScoreFold) -> tuple[Any, ...]:
        token, frame = fold.token.input_bias.shape[0], fold.frame.input_bias.shape[0]
        keys = None if fold.keys is None else fold.keys.shape[1]
        extra = fold.columns.shape[1] - fold.attending  # P, with inter-frame columns 2*P
        return token, frame, fold.heads, extra, fold.eps, fold.score_bound, keys

    first = kind(folds[0])
    for fold in folds[1:]:
        # One by one: torch.compile cannot compare tuples that hold symbolic sizes.
        for own, other in zip(kind(fold), first, strict=True):
            if own != other:
                return False
    return True


def _flat_heads(heads: Sequence[HeadWeights]) -> Tensor:
    """`[V, W]`; the row of a head that all folds share is made once."""
    first = heads[0]
    if all(a is b for head in heads for a, b in zip(head, first, strict=True)):
        row = torch.cat([weight.flatten() for weight in first])
        return row.expand(len(heads), -1).contiguous()
    return torch.stack([torch.cat([weight.flatten() for weight in head]) for head in heads])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all; a lone part that is contiguous is not copied."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts))


def _head(row: Tensor, width: int) -> HeadWeights:
    parts = row.split([width, width * width, width, width, 1])
    return HeadWeights(
        parts[0], parts[1].view(width, width), parts[2], parts[3].view(1, width), parts[4]
    )


def unpack(
    columns: Tensor,
    values: Tensor,
    token_head: Tensor,
    frame_head: Tensor,
    slots: Sequence[int],
    token_features: int,
    heads: int,
    inter_frame: bool,
    eps: float,
    score_bound: float | None,
    keys: Tensor | None = None,
) -> list[ScoreFold]:
    features = values.shape[1]
    extra = features * (2 if inter_frame else 1)
    ends = list(accumulate(slots, initial=0))
    attending = slots if keys is None else [heads * keys.shape[1]] * len(slots)
    last = list(accumulate((count + extra for count in attending), initial=0))
    folds = []
    for v, (begin, end) in enumerate(pairwise(ends)):
        folds.append(
            ScoreFold(
                # Rounded ones count as they are; what else there is stays in its precision.
                columns=columns[last[v] : last[v + 1]].T.to(values.dtype),
                values=values[begin:end],
                heads=heads,
                token=_head(token_head[v], token_features),
                frame=_head(frame_head[v], features - token_features),
                eps=eps,
                score_bound=score_bound,
                keys=None if keys is None else keys[begin:end],
            )
        )
    return folds
