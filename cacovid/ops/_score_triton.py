"""The Triton form of `score`: its registration for CUDA, and the ops of its gradient.

Triton is imported where an op is called, so that `import cacovid` needs neither it nor a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cacovid import backends
from cacovid.ops import _registry

#: Widths up to which the kernels serve, which hold a row's slots and features in registers.
MAX_SLOTS = 1024
MAX_FEATURES = 256
_warned: set[str] = set()
_FIELDS = 3  # integers of `sizes` for each video

_SCHEMA = (
    "(Tensor video, Tensor columns, Tensor values, Tensor token_head, Tensor frame_head, "
    "int[] sizes, int[] slots, int token_features, int heads, bool inter_frame, float eps, "
    "float? score_bound, Tensor? keys=None) -> (Tensor, Tensor, Tensor, Tensor)"
)


def serves(slots: Sequence[int], features: int) -> bool:
    """Whether the kernels take folds of these widths."""
    return max(slots) <= MAX_SLOTS and features <= MAX_FEATURES


def warn_of_width(slots: Sequence[int], features: int) -> None:
    """Tells, once in a process, that folds are too wide for the kernels.

    Args:
        slots: `H*Q` of each fold.
        features: `P`.
    """
    # torch.compile would record the warning, or break its graph at it.
    if torch.compiler.is_compiling() or "width" in _warned:
        return
    _warned.add("width")
    warnings.warn(
        f"score was given a fold of {max(slots)} slots and {features} features; the kernels take "
        f"up to {MAX_SLOTS} and {MAX_FEATURES}, so the slower reference in plain PyTorch serves "
        f"(no less exact). A policy without slots has a slot for each head and each token "
        f"of the question: shorten the question, or use a policy with slots",
        RuntimeWarning,
        stacklevel=4,
    )


def register(reference: Any) -> None:
    """Registers the form with `torch.ops.cacovid.score`.

    Args:
        reference: Serves where Triton is missing or the folds are too wide.
    """

    def score_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
        values, slots = arguments[2], arguments[6]
        if backends.available()["triton"].available:
            if serves(slots, values.shape[1]):
                return _forward(*arguments, keep=False)[:2]
            warn_of_width(slots, values.shape[1])
        scores: tuple[Tensor, Tensor] = reference(*arguments)
        return scores

    _registry._library.impl("score", score_cuda, "CUDA")


def kept(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scores, `X W` before the rows' factors, and the rows' sums of squares.

    Args:
        arguments: Those of the op `score`.

    Returns:
        `[N]`, `[F]`, `[N, C]` with the most columns of a fold (what a video's own fold does not
        have is not written), `[N]`; all float32.
    """
    results: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.cacovid._score_kept.default(
        *arguments
    )
    return results


def columns_gradient(video: Tensor, dz: Tensor, sizes: Sequence[int], folds: int) -> Tensor:
    """The gradient of the columns `[V, C, D]` from that of `X W` `[N, C]`."""
    gradient: Tensor = torch.ops.cacovid._score_columns_gradient.default(video, dz, sizes, folds)
    return gradient


def _forward(*arguments: Any, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from cacovid.kernels.score import score_fwd_triton

    device = arguments[0].device
    with torch.cuda.device(device if device.type == "cuda" else -1):
        done = score_fwd_triton(*arguments, keep=keep)
    none = done.token.new_empty(0)
    return (
        done.token,
        done.frame,
        none if done.z is None else done.z,
        (none if done.squares is None else done.squares),
    )


def _kept(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(*arguments, keep=True)


def _kept_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    video, _, values, _, _, sizes, slots, _, _, inter_frame = arguments[:10]
    extra = values.shape[1] * (2 if inter_frame else 1)
    rows = video.shape[0]
    return (
        values.new_empty(rows),
        values.new_empty(sum(sizes[::_FIELDS])),
        values.new_empty(rows, max(slots) + extra),
        values.new_empty(rows),
    )


def _columns_gradient(video: Tensor, dz: Tensor, sizes: Sequence[int], folds: int) -> Tensor:
    from cacovid.kernels.score import score_dw_triton

    with torch.cuda.device(video.device if video.device.type == "cuda" else -1):
        return score_dw_triton(video, dz, sizes, folds)


def _columns_gradient_fake(video: Tensor, dz: Tensor, sizes: Sequence[int], folds: int) -> Tensor:
    return dz.new_empty(folds, dz.shape[1], video.shape[1])


def _define(name: str, schema: str, form: Any, fake: Any) -> None:
    _registry._library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    # Not for CUDA alone: Triton's interpreter runs the kernels on a CPU, which is how they are
    # tested without a GPU.
    _registry._library.impl(name, form, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cacovid::{name}", fake, lib=_registry._library)


_define("_score_kept", _SCHEMA, _kept, _kept_fake)
_define(
    "_score_columns_gradient",
    "(Tensor video, Tensor dz, int[] sizes, int folds) -> Tensor",
    _columns_gradient,
    _columns_gradient_fake,
)
