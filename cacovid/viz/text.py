"""Text on pictures: a font that is always there, and lines that fit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from PIL import ImageDraw, ImageFont

#: Tried in this order for signs that Pillow's own font, little more than ASCII, does not hold.
_WIDE_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
)
_NO_CHARACTER = "\uffff"


@lru_cache(maxsize=64)
def _fonts(size: int) -> tuple[Any, ...]:
    fonts = [ImageFont.load_default(size)]
    for name in _WIDE_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


@lru_cache(maxsize=1024)
def _font(characters: frozenset[str], size: int) -> Any:
    fonts = _fonts(size)
    return min(fonts, key=lambda font: sum(not _holds(font, c) for c in characters))


def _holds(font: Any, character: str) -> bool:
    if character.isspace():
        return True
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))


def font_for(text: str, size: int) -> Any:
    """A font of `size` pixels that can write `text`, as far as one is installed."""
    return _font(frozenset(text), size)


def width(text: str, size: int) -> int:
    """Width of one line in pixels."""
    return round(font_for(text, size).getlength(text))


def line_height(size: int) -> int:
    """Distance from line to line in pixels."""
    return round(size * 1.35)


def draw_text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    """Writes one line; `anchor` as in Pillow (`"la"`: left, top)."""
    draw.text(position, text, font=font_for(text, size), fill=colour, anchor=anchor)


def wrap(text: str, size: int, available: int, max_lines: int = 4) -> list[str]:
    """`text` in lines no wider than `available` pixels.

    Words that are too long are cut; what does not fit into `max_lines` ends in an ellipsis.
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if width(candidate, size) <= available:
            line = candidate
            continue
        if line:
            lines.append(line)
        line = _cut(word, size, available)
    if line:
        lines.append(line)
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        lines[-1] = _cut(lines[-1] + " …", size, available)
    return lines


def _cut(text: str, size: int, available: int) -> str:
    if width(text, size) <= available:
        return text
    text = text.removesuffix(" …")
    while len(text) > 1 and width(text + "…", size) > available:
        text = text[:-1]
    return text + "…"
