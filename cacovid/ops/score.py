"""Token and frame scores of the fused policy (`K1`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cacovid import reference
from cacovid.ops import _registry
from cacovid.types import Grid

if TYPE_CHECKING:
    from cacovid.reference import ScoreFold

_SPEC = _registry.reference_only("score")


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
    (`cacovid.reference.score`). Differentiable with respect to the fold's tensors, and through
    them to the policy's weights. Deterministic.

    Args:
        video: `[N, D]` float, the video tokens' embeddings.
        fold: The folded weights of the question; one for all videos, or one per video.
        grid: The packed videos, a `Grid` or a list of `(t, h, w)`.
        backend: Forces an implementation (see `cacovid.backends`).

    Returns:
        Token scores `[N]` and frame scores `[F]` in the fold's dtype, on the device of `video`.

    Raises:
        InvalidInputError: for shapes that do not fit the grid or the fold, or a backend that is
            not to be had.
    """
    _SPEC.choose(video.device, backend)
    return reference.score(video, fold, grid)
