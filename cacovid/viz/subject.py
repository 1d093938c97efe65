"""What is drawn: the checked, host-side form of one video's frames, scores and selection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cacovid.errors import InvalidInputError
from cacovid.types import Grid, Scores, Selection
from cacovid.viz import colours


@dataclass(frozen=True)
class Subject:
    """One video, ready to be drawn.

    Args:
        frames: `[F, H, W, 3]` uint8.
        step: `[F]` int: the grid's time step of each frame (a step may span several frames).
        kept: `[t, h, w]` bool.
        heat: `[t, h, w]` in [0, 1], or None where the method has no scores.
        limits: Scores at the two ends of the colour map.
        timestamps: `[F]` seconds, or None.
        caption: Lines; the first is the title (question), the second is set off (answer).
    """

    frames: np.ndarray
    step: np.ndarray
    kept: np.ndarray
    heat: np.ndarray | None
    limits: tuple[float, float]
    timestamps: np.ndarray | None
    caption: tuple[str, ...]

    @property
    def per_step(self) -> np.ndarray:
        """`[t]` int: kept tokens of each time step."""
        return self.kept.sum(axis=(1, 2))

    @property
    def tokens_per_step(self) -> int:
        """`h*w`."""
        return int(self.kept[0].size)

    def summary(self) -> str:
        """Kept tokens of all, in words."""
        kept, total = int(self.kept.sum()), self.kept.size
        return f"{kept:,} of {total:,} video tokens kept ({100 * kept / total:.1f}%)"

    def label(self, frame: int) -> str:
        """The time of a frame, or its number."""
        if self.timestamps is None:
            return f"frame {frame + 1}"
        seconds = float(self.timestamps[frame])
        if seconds < 60:
            return f"{seconds:.2f} s"
        minutes, rest = divmod(seconds, 60)
        hours, minutes = divmod(int(minutes), 60)
        clock = f"{minutes}:{rest:04.1f}"
        return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else clock


def make_subject(
    frames: np.ndarray,
    grid: Grid | Iterable[Sequence[int]],
    scores: Scores | None,
    selection: Selection,
    timestamps: Sequence[float] | np.ndarray | None,
    caption: str | Sequence[str] | None,
) -> Subject:
    """Checks the parts against each other and brings them to the host; see `write_overlay`.

    Raises:
        InvalidInputError: if frames, grid, scores, selection or timestamps do not fit together.
    """
    grid = Grid.of(grid)
    if grid.num_videos != 1:
        raise InvalidInputError(
            f"an overlay shows one video; the grid has {grid.num_videos}: {grid.sizes}. Pass the "
            f"frames, grid.video(i), scores and selection of one of them"
        )
    t, h, w = grid.sizes[0]
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise InvalidInputError(
            f"frames is {frames.dtype} {frames.shape}; expected uint8 [F, H, W, 3], RGB"
        )
    count = frames.shape[0]
    if count < t:
        raise InvalidInputError(f"{count} frames for a grid of {t} time steps {grid.sizes[0]}")
    if selection.grid.sizes != grid.sizes:
        raise InvalidInputError(
            f"the selection is for the grid {selection.grid.sizes}, the overlay for {grid.sizes}"
        )
    token = None
    if scores is not None:
        token = scores.token.detach().float().cpu().numpy()
        if token.shape != (grid.num_tokens,):
            raise InvalidInputError(
                f"scores.token has shape {token.shape}; the grid asks for ({grid.num_tokens},)"
            )
    if timestamps is not None:
        timestamps = np.asarray(timestamps, dtype=np.float64)
        if timestamps.shape != (count,):
            raise InvalidInputError(f"{timestamps.shape} timestamps for {count} frames")
    limits = (0.0, 0.0) if token is None else colours.score_range(token)
    heat = None if token is None else colours.normalised(token, limits).reshape(t, h, w)
    return Subject(
        frames=frames,
        step=np.arange(count) * t // count,
        kept=selection.mask().cpu().numpy().reshape(t, h, w),
        heat=heat,
        limits=limits,
        timestamps=timestamps,
        caption=_lines(caption),
    )


def _lines(caption: str | Sequence[str] | None) -> tuple[str, ...]:
    if caption is None:
        return ()
    lines = caption.splitlines() if isinstance(caption, str) else list(caption)
    return tuple(line.strip() for line in lines if line.strip())
