"""The overlay as a video: the frame as it is beside what is kept of it, over a timeline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from cacovid.viz import colours, text
from cacovid.viz.frame import paint_frame, resized
from cacovid.viz.furniture import draw_caption, draw_legend, draw_timeline, legend_height
from cacovid.viz.subject import Subject

_MARGIN, _GAP = 24, 16
_LABEL_SIZE, _LABEL_HEIGHT = 18, 34
_TIMELINE = 56
#: The two pictures together are about this wide; neither is higher than this.
_WIDTH, _MAX_HEIGHT = 1160, 640
_CAPTION_SIZES = (26, 26, 17)
#: Seconds that the whole clip should take: slow enough to look, not slower than needed.
_SECONDS_PER_FRAME, _LONGEST = 0.6, 45.0


def clip_fps(count: int) -> float:
    """Frames per second of a clip of `count` frames: 0.6 s each, faster above 75 frames."""
    return max(1.0 / _SECONDS_PER_FRAME, count / _LONGEST)


def clip_frames(subject: Subject) -> Iterator[np.ndarray]:
    """The clip's frames, one for each of the video's: `[H', W', 3]` uint8 with even sides."""
    base, tops, cell, inner = _background(subject)
    picture_top, timeline_top = tops
    lefts = (_MARGIN, _MARGIN + cell[0] + _GAP)
    for index, frame in enumerate(subject.frames):
        step = int(subject.step[index])
        canvas = base.copy()
        draw = ImageDraw.Draw(canvas)
        heat = None if subject.heat is None else subject.heat[step]
        canvas.paste(resized(frame, cell), (lefts[0], picture_top))
        canvas.paste(paint_frame(frame, cell, subject.kept[step], heat), (lefts[1], picture_top))
        middle = picture_top + cell[1] + _LABEL_HEIGHT // 2
        time = f"{subject.label(index)}   ({index + 1} of {len(subject.frames)})"
        text.draw_text(draw, (lefts[0], middle), time, _LABEL_SIZE, colours.TEXT, "lm")
        kept = int(subject.per_step[step])
        label = f"{kept} of {subject.tokens_per_step} tokens kept"
        colour = colours.ACCENT if kept else colours.MUTED
        text.draw_text(draw, (lefts[1], middle), label, _LABEL_SIZE, colour, "lm")
        box = (_MARGIN, timeline_top, _MARGIN + inner, timeline_top + _TIMELINE)
        draw_timeline(draw, subject, index, box)
        yield np.asarray(canvas)


def _background(
    subject: Subject,
) -> tuple[Image.Image, tuple[int, int], tuple[int, int], int]:
    """What all frames share, where the pictures and the timeline begin, a picture's size."""
    _, height, width, _ = subject.frames.shape
    cell_width = (_WIDTH - _GAP) // 2
    cell_height = round(cell_width * height / width)
    if cell_height > _MAX_HEIGHT:
        cell_width, cell_height = max(160, round(_MAX_HEIGHT * width / height)), _MAX_HEIGHT
    cell = (cell_width, max(24, cell_height))
    inner = 2 * cell_width + _GAP
    scratch = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    corner = (_MARGIN, _MARGIN)
    picture_top = draw_caption(scratch, subject, corner, inner, _CAPTION_SIZES) + 12
    timeline_top = picture_top + cell[1] + _LABEL_HEIGHT + 4
    size = (inner + 2 * _MARGIN, timeline_top + _TIMELINE + legend_height() + 20)
    # 4:2:0 video has half as many colour samples as pixels each way.
    base = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), colours.BACKGROUND)
    draw_caption(ImageDraw.Draw(base), subject, corner, inner, _CAPTION_SIZES)
    draw_legend(base, subject, (_MARGIN, timeline_top + _TIMELINE + 8), inner)
    return base, (picture_top, timeline_top), cell, inner
