"""The contact sheet: all frames of a video on one picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from cacovid.viz import colours, text
from cacovid.viz.frame import paint_frame
from cacovid.viz.furniture import draw_caption, draw_legend, legend_height
from cacovid.viz.subject import Subject

_MARGIN, _GAP = 28, 16
_LABEL_SIZE = 16
_LABEL_HEIGHT = 32
#: The sheet is about this wide, and frames are no wider than this.
_WIDTH, _MAX_CELL, _MIN_CELL = 1720, 400, 120
_MIN_WIDTH = 900
_ASPECT = 1.55
#: A token of a very wide frame is drawn at least this high, by stretching the frame down to the
#: aspect that follows at most: the model reads it stretched to a square.
_LEAST_TOKEN, _LEAST_STRETCHED = 10, 4


@dataclass(frozen=True)
class _Layout:
    columns: int
    rows: int
    cell: tuple[int, int]

    @property
    def width(self) -> int:
        return self.columns * (self.cell[0] + _GAP) - _GAP

    @property
    def height(self) -> int:
        return self.rows * (self.cell[1] + _LABEL_HEIGHT + _GAP) - _GAP


def draw_sheet(subject: Subject) -> Image.Image:
    """The contact sheet of one video, RGB."""
    count, height, width = subject.frames.shape[:3]
    layout = _layout(count, width / height, subject.kept.shape[1])
    inner = max(layout.width, _MIN_WIDTH - 2 * _MARGIN)
    # The caption is drawn twice: once to learn its height.
    scratch = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    top = draw_caption(scratch, subject, (_MARGIN, _MARGIN), inner) + _GAP
    total = top + layout.height + _GAP + legend_height() + _MARGIN
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, total), colours.BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw_caption(draw, subject, (_MARGIN, _MARGIN), inner)
    for index in range(count):
        row, column = divmod(index, layout.columns)
        left = _MARGIN + column * (layout.cell[0] + _GAP)
        upper = top + row * (layout.cell[1] + _LABEL_HEIGHT + _GAP)
        _draw_cell(sheet, draw, subject, index, (left, upper), layout.cell)
    draw_legend(sheet, subject, (_MARGIN, top + layout.height + _GAP), inner)
    return sheet


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    subject: Subject,
    index: int,
    corner: tuple[int, int],
    cell: tuple[int, int],
) -> None:
    step = int(subject.step[index])
    heat = None if subject.heat is None else subject.heat[step]
    picture = paint_frame(subject.frames[index], cell, subject.kept[step], heat)
    (left, top), (width, height) = corner, cell
    sheet.paste(picture, corner)
    kept, tokens = int(subject.per_step[step]), subject.tokens_per_step
    bar = top + height
    draw.rectangle((left, bar, left + width - 1, bar + 3), fill=colours.PANEL)
    if kept:
        filled = max(2, round(width * kept / tokens))
        draw.rectangle((left, bar, left + filled - 1, bar + 3), fill=colours.ACCENT)
    middle = bar + 4 + (_LABEL_HEIGHT - 4) // 2
    text.draw_text(draw, (left, middle), subject.label(index), _LABEL_SIZE, colours.MUTED, "lm")
    colour = colours.ACCENT if kept else colours.MUTED
    right = left + width
    text.draw_text(draw, (right, middle), f"{kept}/{tokens}", _LABEL_SIZE, colour, "rm")


def _layout(count: int, aspect: float, token_rows: int = 1) -> _Layout:
    """The number of columns for which the sheet comes closest to its aspect, few places empty."""
    best: tuple[float, _Layout] | None = None
    for columns in range(1, min(count, _WIDTH // (_MIN_CELL + _GAP)) + 1):
        rows = math.ceil(count / columns)
        width = min(_MAX_CELL, (_WIDTH + _GAP) // columns - _GAP)
        least = min(_LEAST_TOKEN * token_rows, width // _LEAST_STRETCHED)
        layout = _Layout(columns, rows, (width, max(24, least, round(width / aspect))))
        empty = (rows * columns - count) / (rows * columns)
        cost = abs(math.log(layout.width / layout.height / _ASPECT)) + 0.8 * empty
        if best is None or cost < best[0]:
            best = (cost, layout)
    assert best is not None
    return best[1]
