"""What a report shows, and how it becomes one HTML file that needs nothing else.

Frames are JPEG inside the file, masks are bits and scores bytes, in base64. The table of answers
and times is plain HTML; the pictures are drawn by a script in the page. A content policy in the
page forbids it everything but what it brings along, so nothing is loaded and nothing is sent.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.files import write_text
from cacovid.viz import colours

#: Frames are stored no wider than this.
_WIDEST = 480
_JPEG_QUALITY = 85

#: What the stages are called in the page.
_STAGES = {
    "read": "reading the video", "vision": "vision tower", "compress": "choosing tokens",
    "prefill": "prefill", "decode": "writing the answer",
}  # fmt: skip


@dataclass(frozen=True)
class ReportCondition:
    """A question answered from some of the tokens.

    Args:
        retention: Share of the tokens asked for.
        kept: `[N]` bool.
        answer: What the model said.
        entering: Tokens that entered the language model.
        seconds: By stage, in order.
    """

    retention: float
    kept: np.ndarray
    answer: str
    entering: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class ReportMethod:
    """One method at every retention.

    Args:
        name: What the page calls it.
        scores: `[N]` float, what it thinks of each token; None where it does not score.
        conditions: One for each retention, the same retentions for all methods.
    """

    name: str
    scores: np.ndarray | None
    conditions: Sequence[ReportCondition]


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Args:
        question: The question with its options.
        video: The video's name.
        model: The model's name.
        grid: `(t, h, w)` of the video's tokens.
        frames: `[F, H, W, 3]` uint8, `F` at least `t`.
        timestamps: Seconds of each frame, or None.
        uncompressed: The answer from all tokens.
        methods: The methods, side by side.
    """

    question: str
    video: str
    model: str
    grid: tuple[int, int, int]
    frames: np.ndarray
    timestamps: np.ndarray | None
    uncompressed: ReportCondition
    methods: Sequence[ReportMethod]


def check_report_path(path: str | os.PathLike[str]) -> Path:
    """`path`, if a report can be written there; ask before long work.

    Raises:
        InvalidInputError: if the name does not end in `.html`, is a folder's, or its folder is not
            there or takes no files.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidInputError(f"report {str(path)!r} ends in {path.suffix!r}; expected .html")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidInputError(
            f"report {str(path)!r} cannot be written: expected a file's name in a folder that is "
            f"there and takes files"
        )
    return path


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Writes the page; it appears under its name only once it is complete.

    Args:
        path: Ends in `.html`.
        report: What to show.

    Returns:
        The path.

    Raises:
        InvalidInputError: if the parts do not fit together, or `check_report_path` refuses the
            path.
        MissingDependencyError: if Pillow is not installed.
    """
    path = check_report_path(path)
    write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """The page's text.

    Raises:
        InvalidInputError: if the parts do not fit together.
        MissingDependencyError: if Pillow is not installed.
    """
    _check(report)
    folder = resources.files("cacovid.viz.report")

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    # No text of people's may end the script element that holds it.
    data = json.dumps(_data(report), allow_nan=False).replace("<", "\\u003c")
    title, *rest = report.question.splitlines() or [""]
    values = {
        "TITLE": escape(title),
        "OPTIONS": "".join(f"<li>{escape(line)}</li>" for line in rest),
        "VIDEO": escape(report.video),
        "MODEL": escape(report.model),
        "TABLE": _table(report),
        "STYLE": read("page.css"),
        "DATA": data,
        "SCRIPT": read("page.js"),
    }
    # In one pass over the template: what is filled in is not looked at again.
    pieces = read("page.html").split("@@")
    return "".join(values.get(piece, piece) for piece in pieces)


def _check(report: Report) -> None:
    t, h, w = report.grid
    frames, tokens = report.frames, t * h * w
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < t:
        raise InvalidInputError(
            f"frames is {frames.dtype} {frames.shape}; expected uint8 [F, H, W, 3] of at least "
            f"{t} frames"
        )
    if report.timestamps is not None and len(report.timestamps) != len(frames):
        raise InvalidInputError(f"{len(report.timestamps)} timestamps for {len(frames)} frames")
    retentions = [[c.retention for c in method.conditions] for method in report.methods]
    if not retentions or not retentions[0] or any(own != retentions[0] for own in retentions):
        raise InvalidInputError(
            f"the methods' retentions are {retentions}; expected the same for all, at least one"
        )
    for name, values in _vectors(report):
        if values.shape != (tokens,):
            raise InvalidInputError(
                f"{name} has shape {values.shape}; the grid {report.grid} asks for ({tokens},)"
            )


def _vectors(report: Report) -> list[tuple[str, np.ndarray]]:
    out = [("kept of uncompressed", report.uncompressed.kept)]
    for method in report.methods:
        out += [(f"kept of {method.name}", condition.kept) for condition in method.conditions]
        if method.scores is not None:
            out.append((f"scores of {method.name}", method.scores))
    return out


def _data(report: Report) -> dict[str, Any]:
    count, height, width = report.frames.shape[:3]
    t = report.grid[0]
    stamps = report.timestamps
    return {
        "grid": report.grid,
        "size": [width, height],
        "frames": [_jpeg(frame) for frame in report.frames],
        "step": [i * t // count for i in range(count)],
        "times": None if stamps is None else [round(float(s), 3) for s in stamps],
        "retentions": [c.retention for c in report.methods[0].conditions],
        "stages": [[name, _STAGES.get(name, name)] for name in report.uncompressed.seconds],
        "colours": [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in
                    colours.viridis(np.linspace(0.0, 1.0, 64))],
        "uncompressed": _condition(report.uncompressed),
        "methods": [
            {
                "name": method.name,
                "scores": None if method.scores is None else _heat(method.scores),
                "conditions": [_condition(c) for c in method.conditions],
            }
            for method in report.methods
        ],
    }  # fmt: skip


def _condition(condition: ReportCondition) -> dict[str, Any]:
    return {
        "kept": _base64(np.packbits(condition.kept.astype(bool), bitorder="little").tobytes()),
        "count": int(condition.kept.sum()),
        "answer": condition.answer,
        "entering": condition.entering,
        "seconds": {name: round(float(value), 6) for name, value in condition.seconds.items()},
    }


def _heat(scores: np.ndarray) -> str:
    """Scores as bytes between their percentiles, as overlays colour them."""
    limits = colours.score_range(scores)
    values = colours.normalised(scores, limits)
    # NaN has no colour; the lowest is the least wrong.
    return _base64(np.rint(255 * np.nan_to_num(values)).astype(np.uint8).tobytes())


def _jpeg(frame: np.ndarray) -> str:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "reports need Pillow; install it with: pip install pillow"
        ) from error
    image = Image.fromarray(np.ascontiguousarray(frame))
    if image.width > _WIDEST:
        height = max(1, round(image.height * _WIDEST / image.width))
        image = image.resize((_WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + _base64(buffer.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _table(report: Report) -> str:
    """All answers and times, readable without the script."""
    full = report.uncompressed
    stages = list(full.seconds)
    heads = ["method", "kept", "tokens in", "answer", *(f"{stage}, ms" for stage in stages),
             "first token, ms"]  # fmt: skip
    rows = [("uncompressed", full)]
    rows += [(method.name, c) for method in report.methods for c in method.conditions]
    lines = ["<thead><tr>", *(f"<th scope=col>{escape(head)}</th>" for head in heads),
             "</tr></thead><tbody>"]  # fmt: skip
    for name, c in rows:
        first = sum(seconds for stage, seconds in c.seconds.items() if stage != "decode")
        cells = [
            f"{100 * c.retention:.4g}%", f"{c.entering:,}", c.answer or "–",
            *(f"{1000 * c.seconds.get(stage, 0.0):,.1f}" for stage in stages),
            f"{1000 * first:,.1f}",
        ]  # fmt: skip
        kind = "" if " ".join(c.answer.split()) == " ".join(full.answer.split()) else " class=other"
        lines.append(f"<tr{kind}><th scope=row>{escape(name)}</th>")
        lines += [f"<td>{escape(cell)}</td>" for cell in cells]
        lines.append("</tr>")
    return "".join([*lines, "</tbody>"])
