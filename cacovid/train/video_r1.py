"""Questions from files of the Video-R1 form, checked row by row before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.train.choices import (
    letter_options,
    read_options,
    read_text,
    short,
    solution_letter,
)
from cacovid.train.data import Samples, TrainingSample
from cacovid.train.marking import PROBLEM_TYPES, check_solution, extract_answer


def read_video_r1(
    path: str | PathLike[str],
    video_root: str | PathLike[str] | None = None,
    *,
    max_skipped: float = 0.5,
) -> Samples:
    """Reads questions of the Video-R1 form: a JSON list of objects, or JSON lines; UTF-8.

    Fields of a row: `problem`, `solution` (in `<answer>` tags or bare), `problem_type`,
    `path` or `video` (relative to `video_root`), `options` for multiple choice; `modality_type` or
    `data_type` must be `video` where it is given; `problem_id` or `id` where there is one. A field
    that is null is as good as absent.

    Options may have letters or not; the solution of a multiple choice may be `B`, `(b)`,
    `B. blue` or an option's text, and becomes the bare letter. A row that says the same as an
    earlier one is skipped; one that only has the id of an earlier one stays, as `ID#2`.

    Args:
        path: The file.
        video_root: Where the videos lie; default: the file's folder.
        max_skipped: Greatest share of rows that may be unusable.

    Returns:
        The samples; rows that cannot be used are in `skipped`, new ids in `renamed`: by their
        number from 0 in a list (`row 2`), by the file's line where each has one (`line 3`).

    Raises:
        InvalidInputError: if the file is not JSON, holds no usable row, or too many unusable ones.
    """
    path = Path(path)
    root = path.parent if video_root is None else Path(video_root)
    return samples_of(read_rows(path), root, path, max_skipped=max_skipped)


def samples_of(
    rows: Mapping[str, Any], root: Path, path: Path, *, max_skipped: float = 0.5
) -> Samples:
    """Rows of the Video-R1 form as samples; see `read_video_r1`.

    Args:
        rows: The rows by their names for messages; an `InvalidInputError` stands for one that
            could not be read.
        root: Where the videos lie.
        path: Where the rows come from, for messages.
        max_skipped: Greatest share of rows that may be unusable.

    Raises:
        InvalidInputError: if no row is usable, or too many are not.
    """
    kept: list[TrainingSample] = []
    skipped: list[tuple[str, str]] = []
    renamed: list[tuple[str, str]] = []
    namesakes: dict[str, list[tuple[str, TrainingSample]]] = {}
    taken: set[str] = set()
    for number, (name, row) in enumerate(rows.items()):
        try:
            sample = _sample(row, number, root)
        except InvalidInputError as error:
            skipped.append((name, str(error)))
            continue
        others = namesakes.setdefault(sample.id, [])
        same = next((earlier for earlier, other in others if other == sample), None)
        if same is not None:
            skipped.append((name, f"the same as {same}"))
            continue
        others.append((name, sample))
        if sample.id in taken:
            sample = replace(sample, id=_free_id(sample.id, taken))
            renamed.append((name, sample.id))
        taken.add(sample.id)
        kept.append(sample)
    if not kept or len(skipped) > max_skipped * len(rows):
        shown = "; ".join(f"{row}: {reason}" for row, reason in skipped[:5])
        raise InvalidInputError(
            f"{path}: {len(skipped)} of {len(rows)} rows cannot be used ({shown}). Mend them, or "
            f"raise max_skipped"
        )
    return Samples(tuple(kept), tuple(skipped), tuple(renamed))


def _free_id(id: str, taken: set[str]) -> str:
    number = 2
    while f"{id}#{number}" in taken:
        number += 1
    return f"{id}#{number}"


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte-order mark.

    Raises:
        InvalidInputError: if it cannot be read, or is in another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path} is not UTF-8 (byte {error.start:,} is {error.object[error.start]:#04x}); save "
            f"it as UTF-8"
        ) from error


def read_rows(path: Path) -> dict[str, Any]:
    """The rows of a JSON list (`row 0`, …) or of JSON lines (`line 1`, …), by these names.

    A line that is not JSON is an `InvalidInputError` in its place.

    Raises:
        InvalidInputError: if the file is neither, or holds nothing.
    """
    text = read_utf8(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise InvalidInputError(f"{path} is not JSON: {error}") from error
        lines = _lines(text)
        if lines and all(isinstance(row, InvalidInputError) for row in lines.values()):
            name, reason = next(iter(lines.items()))
            raise InvalidInputError(
                f"{path} is neither JSON nor JSON lines: {name}: {reason}"
            ) from error
        if not lines:
            raise _no_rows(path) from None
        return lines
    if isinstance(rows, Mapping) and rows.keys() & {"problem", "question"}:  # one JSON line
        rows = [rows]
    if not isinstance(rows, list):
        raise InvalidInputError(f"{path} holds a {type(rows).__name__}; expected a list of rows")
    if not rows:
        raise _no_rows(path)
    return {f"row {number}": row for number, row in enumerate(rows)}


def _no_rows(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path} holds no rows; expected a list of them, or one a line")


def _lines(text: str) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    # Not `splitlines`: strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows[f"line {number}"] = json.loads(line)
        except (ValueError, RecursionError) as error:
            rows[f"line {number}"] = InvalidInputError(f"not JSON: {error}")
    return rows


def _sample(row: Any, number: int, root: Path) -> TrainingSample:
    """A row as a sample.

    Raises:
        InvalidInputError: saying why it cannot be used.
    """
    if isinstance(row, InvalidInputError):
        raise row
    if not isinstance(row, Mapping):
        raise InvalidInputError(f"a {type(row).__name__}, not an object")
    modality = _first(row, "modality_type", "data_type")
    if modality not in (None, "video"):
        raise InvalidInputError(f"modality_type is {short(modality)}, not 'video'")
    kind = row.get("problem_type")
    if kind is None:
        raise InvalidInputError("no problem_type")
    if kind not in PROBLEM_TYPES:
        raise InvalidInputError(
            f"problem_type {short(kind)} is not known; expected one of {', '.join(PROBLEM_TYPES)}"
        )
    problem = _text(row, "problem")
    solution = extract_answer(_text(row, "solution"))
    if not solution:
        raise InvalidInputError("no solution: nothing stands between the tags")
    options = read_options(row.get("options"))
    if kind == "multiple choice":
        if not options:
            raise InvalidInputError("multiple choice without options")
        options = letter_options(options)
        solution = solution_letter(solution, options)
    check_solution(solution, kind)
    own = _first(row, "problem_id", "id")
    return TrainingSample(
        id=str(number) if own is None else read_text(own, "problem_id"),
        problem=problem,
        solution=solution,
        problem_type=kind,
        video=_video(row, root),
        options=options,
    )


def _video(row: Mapping[str, Any], root: Path) -> Path:
    where = _first(row, "path", "video")
    if where in (None, ""):
        raise InvalidInputError("no path or video")
    if not isinstance(where, str):
        raise InvalidInputError(f"path is {short(where)}; expected text")
    video = root / where
    if not os.path.isfile(video):  # unlike Path.is_file, false for names that no system takes
        name = str(video)
        raise InvalidInputError(
            f"there is no video {name if name.isprintable() and len(name) < 4096 else short(name)}"
        )
    return video


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        raise InvalidInputError(f"no {name}")
    text = read_text(value, name)
    if not text.strip():
        raise InvalidInputError(f"no {name}")
    return text
