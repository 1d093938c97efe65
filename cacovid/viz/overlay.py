"""Overlays: which tokens of a video were kept, and what the method thought of the others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.files import written_whole
from cacovid.types import Grid, Scores, Selection

SUFFIXES = (".png", ".mp4")


def check_overlay_path(path: str | os.PathLike[str]) -> Path:
    """`path`, if an overlay can be written there; costs nothing, so ask before long work.

    Raises:
        InvalidInputError: if the name ends neither in `.png` nor in `.mp4`, is a folder's, or its
            folder is not there or takes no files.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInputError(
            f"overlay {str(path)!r} "
            f"{f'ends in {path.suffix!r}' if path.suffix else 'has no ending'}; expected .png "
            f"(contact sheet) or .mp4 (video)"
        )
    if not path.parent.is_dir():
        raise InvalidInputError(
            f"overlay {str(path)!r} cannot be written: there is no folder {str(path.parent)!r}"
        )
    if path.is_dir():
        raise InvalidInputError(f"overlay {str(path)!r} is a folder; expected the name of a file")
    try:
        # Rights alone do not tell: file systems are read-only, or take no files from anybody.
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InvalidInputError(
            f"overlay {str(path)!r} cannot be written: the folder {str(path.parent)!r} takes no "
            f"files ({error.strerror})"
        ) from error
    return path


def write_overlay(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    grid: Grid | Iterable[Sequence[int]],
    scores: Scores | None,
    selection: Selection,
    *,
    timestamps: Sequence[float] | np.ndarray | None = None,
    caption: str | Sequence[str] | None = None,
) -> Path:
    """Draws the kept tokens of one video, and the scores of all its tokens.

    Kept tokens stay bright inside an outline; dropped ones are dimmed and, where the method has
    scores, tinted with their heat map. The file appears under its name only once it is complete.

    Args:
        path: Ends in `.png` (contact sheet of all frames) or `.mp4` (video).
        frames: `[F, H, W, 3]` uint8 RGB, of any size; `F` at least the grid's `t`. A time step
            may span several frames.
        grid: The `(t, h, w)` of the video, alone; `h` and `w` need not divide the frame.
        scores: The scores of its `t*h*w` tokens, or None for a method without.
        selection: The kept tokens.
        timestamps: Seconds of each frame.
        caption: Lines, or one text with line breaks: the first is the title (the question), the
            second is set off (the answer).

    Returns:
        The path.

    Raises:
        InvalidInputError: if the parts do not fit together, or `check_overlay_path` refuses the
            path.
        MissingDependencyError: if Pillow is not installed.
    """
    path = check_overlay_path(path)
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "overlays need Pillow; install it with: pip install pillow"
        ) from error
    from cacovid.viz.subject import make_subject

    subject = make_subject(frames, grid, scores, selection, timestamps, caption)
    if path.suffix.lower() == ".png":
        from cacovid.viz.sheet import draw_sheet

        sheet = draw_sheet(subject)
        with written_whole(path) as part:
            sheet.save(part, format="PNG", optimize=True)
    else:
        from cacovid.video.write import write_video
        from cacovid.viz.clip import clip_fps, clip_frames

        clip = np.stack(list(clip_frames(subject)))
        write_video(path, clip, fps=clip_fps(len(frames)))
    return path
