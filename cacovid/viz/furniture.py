"""What stands around the frames: caption, legend, and the timeline of kept tokens."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from cacovid.viz import colours, text
from cacovid.viz.subject import Subject

_TITLE, _ANSWER, _SMALL = 28, 28, 17
_SWATCH = 22


def draw_caption(
    draw: ImageDraw.ImageDraw,
    subject: Subject,
    corner: tuple[int, int],
    available: int,
    sizes: tuple[int, int, int] = (_TITLE, _ANSWER, _SMALL),
) -> int:
    """Title, answer, further lines and the count of kept tokens; returns where they end."""
    left, top = corner
    for number, caption in enumerate(subject.caption):
        size = sizes[min(number, 2)]
        colour = (colours.TEXT, colours.ACCENT, colours.MUTED)[min(number, 2)]
        for line in text.wrap(caption, size, available, max_lines=3):
            text.draw_text(draw, (left, top), line, size, colour)
            top += text.line_height(size)
    if subject.caption:
        top += 4
    text.draw_text(draw, (left, top), subject.summary(), sizes[2], colours.MUTED)
    return top + text.line_height(sizes[2])


def legend_height() -> int:
    """Pixels that `draw_legend` takes."""
    return 40


def draw_legend(sheet: Image.Image, subject: Subject, corner: tuple[int, int], width: int) -> None:
    """Kept and dropped tokens, and the colours of the scores."""
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    middle = top + legend_height() // 2
    scored = subject.heat is not None
    label = "kept token, rim in the colour of its score" if scored else "kept token"
    left = _swatch(draw, (left, middle), colours.OUTLINE, colours.KEPT, label)
    dropped = colours.DROPPED_SCORED if scored else colours.DROPPED_PLAIN
    left = _swatch(draw, (left, middle), colours.HALO, dropped, "dropped token")
    if subject.heat is None:
        note = "this method gives no scores"
        text.draw_text(draw, (left, middle), note, _SMALL, colours.MUTED, "lm")
        return
    low, high = (_number(value) for value in subject.limits)
    text.draw_text(draw, (left, middle), f"score  {low}", _SMALL, colours.MUTED, "lm")
    left += text.width(f"score  {low}", _SMALL) + 10
    # What the words leave; a sheet of few frames is narrow.
    bar = max(24, min(260, corner[0] + width - left - 10 - text.width(high, _SMALL)))
    ramp = colours.viridis(np.linspace(0, 1, bar))[None].repeat(14, axis=0)
    sheet.paste(Image.fromarray(np.rint(ramp).astype(np.uint8)), (left, middle - 7))
    text.draw_text(draw, (left + bar + 10, middle), high, _SMALL, colours.MUTED, "lm")


def draw_timeline(
    draw: ImageDraw.ImageDraw,
    subject: Subject,
    current: int,
    box: tuple[int, int, int, int],
) -> None:
    """Kept tokens of every frame as bars, the current one set off.

    Args:
        draw: What to draw on.
        subject: The video.
        current: Number of the current frame.
        box: Left, top, right, bottom.
    """
    left, top, right, bottom = box
    draw.rectangle(box, fill=colours.PANEL)
    counts = subject.per_step[subject.step]
    most = max(1, int(counts.max()))
    slot = (right - left) / len(counts)
    gap = 2 if slot >= 6 else 0
    for index, count in enumerate(counts):
        begin, end = left + index * slot, left + (index + 1) * slot - gap
        height = (bottom - top - 6) * int(count) / most
        colour = colours.ACCENT if index == current else colours.BAR
        if index == current:
            draw.rectangle((begin, top, end, bottom), fill=colours.CURRENT)
        if count:
            draw.rectangle((begin, bottom - max(2.0, height), end, bottom), fill=colour)


def _swatch(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    edge: tuple[int, int, int],
    fill: tuple[int, int, int],
    label: str,
) -> int:
    left, middle = place
    box = (left, middle - _SWATCH // 2, left + _SWATCH, middle + _SWATCH // 2)
    draw.rectangle(box, fill=fill, outline=edge, width=3)
    text.draw_text(draw, (left + _SWATCH + 9, middle), label, _SMALL, colours.MUTED, "lm")
    return left + _SWATCH + 9 + text.width(label, _SMALL) + 30


def _number(value: float) -> str:
    return f"{value:.3g}"
