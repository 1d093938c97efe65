"""Token and frame scores of the fused policy (`K1`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.ops import _registry, _score_triton
from cacovid.ops._score_backward import score_backward
from cacovid.ops._score_folds import PackedFolds as PackedFolds
from cacovid.ops._score_folds import alike, pack, unpack
from cacovid.reference.score import ScoreFold as _ScoreFold
from cacovid.reference.score import check_fold, check_score, check_video
from cacovid.reference.score import score as score_reference
from cacovid.types import Grid

if TYPE_CHECKING:
    from cacovid.reference import ScoreFold

_FIELDS = 3  # integers of `sizes` for each video
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def score(
    video: Tensor,
    fold: ScoreFold | PackedFolds | Sequence[ScoreFold],
    grid: Grid | Iterable[Sequence[int]],
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores of `CrossAttentionPolicy` from one reading of the video's embeddings.

    The question side is folded into the weights beforehand (`CrossAttentionPolicy.fold`), so the
    first stage is one matrix product whose rows are scaled afterwards by the RMSNorm's factor
    (`cacovid.reference.score`); where a fold has keys of its own, a small one follows.
    Differentiable with respect to `video` and the fold's tensors, and through them to the policy's
    weights. Deterministic. Compiled forms multiply in the precision of `video` and do everything
    else in float32: the error is at most twice that of the plain formula in that precision. A fold
    in float64 is scored by the reference; on a GPU one of more than 1,024 slots (`H*Q`) or 256
    features too, with a warning.

    Args:
        video: `[N, D]` float, the video tokens' embeddings.
        fold: The folded weights of the question; one for all videos, or one per video; or what
            `cacovid.ops.score.pack_folds` made of them.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        Token scores `[N]` and frame scores `[F]` in the fold's dtype, on the device of `video`.

    Raises:
        InvalidInputError: for shapes, dtypes or devices that do not fit the grid or the fold, or a
            backend that is not to be had.
    """
    grid = Grid.of(grid)
    if isinstance(fold, PackedFolds):
        owners = _owners(video, fold, grid)
        form = _packed_form(fold, video.device, video.dtype, backend)
        if form == "reference":
            folds = unpack(*fold)
            return score_reference(video, [folds[owner] for owner in owners], grid)
        return score_packed(video, fold, _sizes(grid, owners), triton=form == "triton")
    folds, owners = _distinct(fold, grid)
    check_score(video, [folds[owner] for owner in owners], grid)
    tensors = [t for f in folds for t in (f.columns, f.values, *f.token, *f.frame)]
    tensors += [f.keys for f in folds if f.keys is not None]
    slots, features = [f.values.shape[0] for f in folds], max(f.features for f in folds)
    form = _form(tensors, slots, features, video.device, video.dtype, backend)
    if form == "reference":
        return score_reference(video, [folds[owner] for owner in owners], grid)
    if not alike(folds):  # folds of different policies: one call for each video
        results = [
            score(rows, folds[owner], [size], backend=backend)
            for rows, owner, size in zip(
                video.split(list(grid.tokens_per_video)), owners, grid.sizes, strict=True
            )
        ]
        return torch.cat([t for t, _ in results]), torch.cat([f for _, f in results])
    return score_packed(video, pack(folds), _sizes(grid, owners), triton=form == "triton")


def pack_folds(
    fold: ScoreFold | Sequence[ScoreFold], video_dtype: torch.dtype | None = None
) -> PackedFolds:
    """Folds in the form that `score` brings them into at every call, made once.

    For calls that repeat, above all in a CUDA graph, which then holds the kernels alone. The scores
    of compiled forms are the same bit for bit. Differentiable. What is packed is a copy, or a view
    where a fold stands alone: after a change of the fold's tensors pack it again.

    Args:
        fold: One fold, or one per video of the calls to come; of one policy, on one device.
        video_dtype: Dtype of the videos to come, to which the Triton form rounds the columns. Given
            it, and where that form will serve and no gradient is wanted, they are rounded here.

    Returns:
        What `score` takes in place of `fold`.

    Raises:
        InvalidInputError: for no fold, folds of different policies, or tensors that do not fit
            each other.
    """
    folds = [fold] if isinstance(fold, _ScoreFold) else list(fold)
    if not folds:
        raise InvalidInputError("no fold was given; expected one, or one per video")
    for own in folds:
        check_fold(own, folds[0].columns.T)
    if not alike(folds):
        raise InvalidInputError(
            f"the {len(folds)} folds are of different policies, or some have keys and others not "
            f"(`CrossAttentionPolicy.fold` has a word in that); pack those that are alike, or give "
            f"the folds to score as they are"
        )
    packed = pack(folds)
    if video_dtype is None or (torch.is_grad_enabled() and packed.columns.requires_grad):
        return packed
    if _packed_form(packed, packed.columns.device, video_dtype, None) != "triton":
        return packed
    return packed._replace(columns=packed.columns.to(video_dtype))


def score_packed(
    video: Tensor, packed: PackedFolds, sizes: list[int], *, triton: bool = False
) -> tuple[Tensor, Tensor]:
    """The op on folds that are packed already; arguments are those of the schema.

    Args:
        video: `[N, D]` float32, bfloat16 or float16.
        packed: The folds, in float32; for the Triton form the columns may be in the dtype of
            `video`.
        sizes: Three integers for each video: frames, tokens of a frame, number of its fold.
        triton: Whether a gradient goes by the Triton form, which keeps the few columns.

    Returns:
        Token scores `[N]` and frame scores `[F]`, float32.
    """
    tensors = (video, *packed[:4])
    if torch.is_grad_enabled() and any(t.requires_grad for t in (video, *packed.tensors)):
        keys = packed.keys  # with them the columns are recomputed
        scores: tuple[Tensor, Tensor] = _Score.apply(
            triton and keys is None, *tensors, keys, sizes, *packed[4:-1]
        )
        return scores
    return _registry.call(_OP, *tensors, sizes, *packed[4:])


class _Score(torch.autograd.Function):
    """Outside the op. Nothing is kept of width D but the video itself.

    The backward pass recomputes the few columns; the Triton form keeps them, `[N, C]`.
    """

    @staticmethod
    def forward(ctx: Any, triton: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
        tensors, keys, ctx.settings = arguments[:5], arguments[5], arguments[6:]
        if not triton:
            ctx.save_for_backward(*tensors, keys)
            return _registry.call(_OP, *tensors, *ctx.settings, keys)
        token, frame, z, squares = _registry.call(_score_triton.kept, *tensors, *ctx.settings)
        ctx.save_for_backward(*tensors, keys, z, squares)
        return token, frame

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        video, *weights, keys = ctx.saved_tensors[:6]
        sizes, *settings = ctx.settings
        wanted = ctx.needs_input_grad[1:]
        with torch.autocast(video.device.type, enabled=False):
            found = score_backward(
                grads[0],
                grads[1],
                video,
                unpack(*[*weights, *settings, keys]),
                list(zip(sizes[::_FIELDS], sizes[1::_FIELDS], sizes[2::_FIELDS], strict=True)),
                of_video=wanted[0],
                kept=ctx.saved_tensors[6:] or None,
            )
        given = (grad if wish else None for grad, wish in zip(found, wanted, strict=False))
        return (None, *given, *(None for _ in ctx.settings))


def _distinct(
    fold: ScoreFold | Sequence[ScoreFold], grid: Grid
) -> tuple[list[ScoreFold], list[int]]:
    """The folds, each object once, and for each video the number of its own."""
    if isinstance(fold, _ScoreFold):
        return [fold], [0] * grid.num_videos
    given = list(fold) if isinstance(fold, Iterable) else [fold]
    for own in given:
        if not isinstance(own, _ScoreFold):
            raise InvalidInputError(
                f"fold is of the type {type(own).__name__}; expected what "
                f"CrossAttentionPolicy.fold(question) gives, or a list of it"
            )
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


def _owners(video: Tensor, packed: PackedFolds, grid: Grid) -> list[int]:
    """For each video the number of its fold, once all fits together."""
    check_video(video, grid)
    count = len(packed.slots)
    if count not in (1, grid.num_videos):
        raise InvalidInputError(
            f"{count} folds are packed for {grid.num_videos} videos; pack one, or one each"
        )
    columns = packed.columns
    if columns.shape[1] != video.shape[1]:
        raise InvalidInputError(
            f"video has hidden size {video.shape[1]}, the packed folds {columns.shape[1]}; use the "
            f"policy with its own base model"
        )
    if columns.device != video.device:
        raise InvalidInputError(
            f"video is on {video.device} and the packed folds on {columns.device}; move them to "
            f"one device"
        )
    if columns.dtype not in (video.dtype, packed.values.dtype):
        raise InvalidInputError(
            f"the folds are packed for videos in {columns.dtype}; got {video.dtype}: pack them for "
            f"that, or without video_dtype"
        )
    return [0] * grid.num_videos if count == 1 else list(range(count))


def _sizes(grid: Grid, owners: Sequence[int]) -> list[int]:
    """As the schema takes them."""
    sizes = []
    for (t, h, w), owner in zip(grid.sizes, owners, strict=True):
        sizes += [t, h * w, owner]
    return sizes


def _packed_form(
    packed: PackedFolds, device: torch.device, video_dtype: torch.dtype, backend: str | None
) -> str:
    rounded = packed.columns.dtype != packed.values.dtype
    tensors = packed.tensors[1:] if rounded else packed.tensors
    return _form(tensors, packed.slots, packed.values.shape[1], device, video_dtype, backend)


def _form(
    tensors: Sequence[Tensor],
    slots: Sequence[int],
    features: int,
    device: torch.device,
    video_dtype: torch.dtype,
    backend: str | None,
) -> str:
    """The implementation that serves folds of these tensors and widths."""
    form = _SPEC.choose(device, backend)
    if form == "reference":
        return form
    served = form != "triton" or _score_triton.serves(slots, features)
    if served and video_dtype in _DTYPES and all(t.dtype == torch.float32 for t in tensors):
        return form
    if backend is not None:
        raise InvalidInputError(
            f"backend {backend!r} of score takes folds in float32 and video in float32, "
            f"bfloat16 or float16; got {tensors[0].dtype} and {video_dtype}, and at "
            f"most {max(slots)} slots of {features} features "
            f"(triton takes up to {_score_triton.MAX_SLOTS} of {_score_triton.MAX_FEATURES})"
        )
    if not served:
        _score_triton.warn_of_width(slots, features)
    return "reference"


def _reference(
    video: Tensor,
    columns: Tensor,
    values: Tensor,
    token_head: Tensor,
    frame_head: Tensor,
    sizes: Sequence[int],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    folds = unpack(columns, values, token_head, frame_head, *settings)
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
    return values.new_empty(video.shape[0]), values.new_empty(sum(sizes[::_FIELDS]))


_SPEC, _OP = _registry.define(
    "score",
    "(Tensor video, Tensor columns, Tensor values, Tensor token_head, Tensor frame_head, "
    "int[] sizes, int[] slots, int token_features, int heads, bool inter_frame, float eps, "
    "float? score_bound, Tensor? keys=None) -> (Tensor, Tensor)",
    backends=("triton", "cpu"),
    reference=_reference,
    fake=_fake,
)
_score_triton.register(_reference)
