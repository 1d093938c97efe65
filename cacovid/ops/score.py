"""Token and frame scores of the fused policy (`K1`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.ops import _registry, _score_triton
from cacovid.ops._score_backward import score_backward
from cacovid.reference.score import HeadWeights, check_score
from cacovid.reference.score import ScoreFold as _ScoreFold
from cacovid.reference.score import score as score_reference
from cacovid.types import Grid

if TYPE_CHECKING:
    from cacovid.reference import ScoreFold

_FIELDS = 3  # integers of `sizes` for each video
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class PackedFolds(NamedTuple):
    """Folds of one policy as the schema takes them: few tensors, one after another.

    Dimensions: `V` folds, `S` their slots in all (`H*Q` of each fold), `P = P_t + P_f` features,
    `C` columns in all.

    Args:
        columns: `[C, D]`: the columns of each fold as contiguous rows, fold after fold.
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


def score(
    video: Tensor,
    fold: ScoreFold | Sequence[ScoreFold],
    grid: Grid | Iterable[Sequence[int]],
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores of `CrossAttentionPolicy` from one reading of the video's embeddings.

    The question side is folded into the weights beforehand (`CrossAttentionPolicy.fold`), so the
    first stage is one matrix product whose rows are scaled afterwards by the RMSNorm's factor
    (`cacovid.reference.score`). Differentiable with respect to `video` and the fold's tensors, and
    through them to the policy's weights. Deterministic. Compiled forms multiply in the precision
    of `video` and do everything else in float32: the error is at most twice that of the plain
    formula in that precision. A fold in float64 is scored by the reference.

    Args:
        video: `[N, D]` float, the video tokens' embeddings.
        fold: The folded weights of the question; one for all videos, or one per video.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        Token scores `[N]` and frame scores `[F]` in the fold's dtype, on the device of `video`.

    Raises:
        InvalidInputError: for shapes, dtypes or devices that do not fit the grid or the fold, or a
            backend that is not to be had.
    """
    grid = Grid.of(grid)
    folds, owners = _distinct(fold, grid)
    check_score(video, [folds[owner] for owner in owners], grid)
    form = _SPEC.choose(video.device, backend)
    if form != "reference" and not _has_form(video, folds, form):
        if backend is not None:
            raise InvalidInputError(
                f"backend {backend!r} of score takes folds in float32 and video in float32, "
                f"bfloat16 or float16; got {folds[0].columns.dtype} and {video.dtype}, and at most "
                f"{max(f.values.shape[0] for f in folds)} slots of {folds[0].features} features "
                f"(triton takes up to {_score_triton.MAX_SLOTS} of {_score_triton.MAX_FEATURES})"
            )
        form = "reference"
    if form == "reference":
        return score_reference(video, [folds[owner] for owner in owners], grid)
    if not _alike(folds):  # folds of different policies: one call for each video
        results = [
            score(rows, folds[owner], [size], backend=backend)
            for rows, owner, size in zip(
                video.split(list(grid.tokens_per_video)), owners, grid.sizes, strict=True
            )
        ]
        return torch.cat([t for t, _ in results]), torch.cat([f for _, f in results])
    packed = pack_folds(folds)
    sizes = []
    for (t, h, w), owner in zip(grid.sizes, owners, strict=True):
        sizes += [t, h * w, owner]
    return score_packed(video, packed, sizes, triton=form == "triton")


def pack_folds(folds: Sequence[ScoreFold]) -> PackedFolds:
    """Folds of one policy, one after another. Differentiable.

    Args:
        folds: At least one; alike but for the number of slots.
    """
    first = folds[0]
    return PackedFolds(
        columns=torch.cat([fold.columns.T for fold in folds]).contiguous(),
        values=torch.cat([fold.values for fold in folds]).contiguous(),
        token_head=_flat_heads([fold.token for fold in folds]),
        frame_head=_flat_heads([fold.frame for fold in folds]),
        slots=[fold.values.shape[0] for fold in folds],
        token_features=first.token.input_bias.shape[0],
        heads=first.heads,
        inter_frame=first.inter_frame,
        eps=first.eps,
        score_bound=first.score_bound,
    )


def score_packed(
    video: Tensor, packed: PackedFolds, sizes: list[int], *, triton: bool = False
) -> tuple[Tensor, Tensor]:
    """The op on folds that are packed already; arguments are those of the schema.

    Args:
        video: `[N, D]` float32, bfloat16 or float16.
        packed: The folds, in float32.
        sizes: Three integers for each video: frames, tokens of a frame, number of its fold.
        triton: Whether a gradient goes by the Triton form, which keeps the few columns.

    Returns:
        Token scores `[N]` and frame scores `[F]`, float32.
    """
    tensors = (video, *packed[:4])
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        scores: tuple[Tensor, Tensor] = _Score.apply(triton, *tensors, sizes, *packed[4:])
        return scores
    return _registry.call(_OP, *tensors, sizes, *packed[4:])


class _Score(torch.autograd.Function):
    """Outside the op. Nothing is kept of width D but the video itself.

    The backward pass recomputes the few columns; the Triton form keeps them, `[N, C]`.
    """

    @staticmethod
    def forward(ctx: Any, triton: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.settings = arguments[5:]
        if not triton:
            ctx.save_for_backward(*arguments[:5])
            return _registry.call(_OP, *arguments)
        token, frame, z, squares = _registry.call(_score_triton.kept, *arguments)
        ctx.save_for_backward(*arguments[:5], z, squares)
        return token, frame

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        video, *weights = ctx.saved_tensors[:5]
        sizes, *settings = ctx.settings
        wanted = ctx.needs_input_grad[1:]
        with torch.autocast(video.device.type, enabled=False):
            found = score_backward(
                grads[0],
                grads[1],
                video,
                _unpack(*weights, *settings),
                list(zip(sizes[::_FIELDS], sizes[1::_FIELDS], sizes[2::_FIELDS], strict=True)),
                of_video=wanted[0],
                kept=ctx.saved_tensors[5:] or None,
            )
        given = (grad if wish else None for grad, wish in zip(found, wanted, strict=False))
        return (None, *given, *(None for _ in ctx.settings))


def _distinct(
    fold: ScoreFold | Sequence[ScoreFold], grid: Grid
) -> tuple[list[ScoreFold], list[int]]:
    """The folds, each object once, and for each video the number of its own."""
    if isinstance(fold, _ScoreFold):
        return [fold], [0] * grid.num_videos
    given = list(fold)
    if len(given) != grid.num_videos:
        raise InvalidInputError(
            f"{len(given)} folds were given for {grid.num_videos} videos; give one, or one each"
        )
    folds: list[ScoreFold] = []
    owners = []
    for own in given:
        place = next((i for i, other in enumerate(folds) if other is own), len(folds))
        if place == len(folds):
            folds.append(own)
        owners.append(place)
    return folds, owners


def _has_form(video: Tensor, folds: Sequence[ScoreFold], form: str) -> bool:
    if form == "triton":
        slots = [fold.values.shape[0] for fold in folds]
        if not _score_triton.serves(slots, max(fold.features for fold in folds)):
            return False
    return video.dtype in _DTYPES and all(
        tensor.dtype == torch.float32
        for fold in folds
        for tensor in (fold.columns, fold.values, *fold.token, *fold.frame)
    )


def _alike(folds: Sequence[ScoreFold]) -> bool:
    def shape(fold: ScoreFold) -> tuple[Any, ...]:
        token, frame = fold.token.input_bias.shape, fold.frame.input_bias.shape
        return token, frame, fold.heads, fold.inter_frame, fold.eps, fold.score_bound

    return all(shape(fold) == shape(folds[0]) for fold in folds)


def _flat_heads(heads: Sequence[HeadWeights]) -> Tensor:
    """`[V, W]`; the row of a head that all folds share is made once."""
    first = heads[0]
    shared = all(a is b for head in heads for a, b in zip(head, first, strict=True))
    rows = [
        torch.cat([weight.flatten() for weight in head])
        for head in (heads[:1] if shared else heads)
    ]
    return torch.stack(rows).expand(len(heads), -1)


def _head(row: Tensor, width: int) -> HeadWeights:
    parts = row.split([width, width * width, width, width, 1])
    return HeadWeights(
        parts[0], parts[1].view(width, width), parts[2], parts[3].view(1, width), parts[4]
    )


def _unpack(
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
) -> list[ScoreFold]:
    features = values.shape[1]
    extra = features * (2 if inter_frame else 1)
    ends = list(accumulate(slots, initial=0))
    folds = []
    for v, (begin, end) in enumerate(pairwise(ends)):
        folds.append(
            _ScoreFold(
                columns=columns[begin + v * extra : end + (v + 1) * extra].T,
                values=values[begin:end],
                heads=heads,
                token=_head(token_head[v], token_features),
                frame=_head(frame_head[v], features - token_features),
                eps=eps,
                score_bound=score_bound,
            )
        )
    return folds


def _reference(
    video: Tensor,
    columns: Tensor,
    values: Tensor,
    token_head: Tensor,
    frame_head: Tensor,
    sizes: Sequence[int],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    folds = _unpack(columns, values, token_head, frame_head, *settings)
    grid = Grid([(t, 1, n) for t, n in zip(sizes[::_FIELDS], sizes[1::_FIELDS], strict=True)])
    with torch.autocast(video.device.type, enabled=False):
        return score_reference(video, [folds[v] for v in sizes[2::_FIELDS]], grid)


def _fake(
    video: Tensor,
    columns: Tensor,
    values: Tensor,
    token_head: Tensor,
    frame_head: Tensor,
    sizes: Sequence[int],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    return columns.new_empty(video.shape[0]), columns.new_empty(sum(sizes[::_FIELDS]))


_SPEC, _OP = _registry.define(
    "score",
    "(Tensor video, Tensor columns, Tensor values, Tensor token_head, Tensor frame_head, "
    "int[] sizes, int[] slots, int token_features, int heads, bool inter_frame, float eps, "
    "float? score_bound) -> (Tensor, Tensor)",
    backends=("triton", "cpu"),
    reference=_reference,
    fake=_fake,
)
_score_triton.register(_reference)
