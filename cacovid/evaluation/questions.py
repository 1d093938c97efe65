"""Questions of people's own files: Video-R1 form, or any list of multiple-choice questions.

The columns of a multiple-choice list go by the usual names of published test sets: see
`read_questions`. What cannot be told for certain (do answers count from 0 or from 1?) is asked for,
not guessed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.train.choices import read_options, read_text, short
from cacovid.train.data import Samples
from cacovid.train.video_r1 import read_rows, read_utf8, samples_of

QUESTION = ("question", "problem", "prompt", "query")
VIDEO = (
    "video", "path", "video_path", "video_file", "video_name", "videopath", "file", "filename",
    "video_id", "videoid", "q_uid", "vid",
)  # fmt: skip
OPTIONS = ("options", "choices", "candidates", "answers_list", "multiple_choice")
ANSWER = (
    "answer", "solution", "correct_answer", "correct_choice", "correct_option", "answer_number",
    "answer_index", "answer_idx", "correct", "truth", "label",
)  # fmt: skip
IDENTITY = ("id", "question_id", "problem_id", "qid", "uid")
#: Tried where a video is named without its ending.
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")

_OPTION_COLUMN = re.compile(r"((?:option|choice|answer|candidate|opt|a)?[ _]?)([a-z]|\d{1,2})")
_INTEGER = re.compile(r"\s*\d+\s*")


def read_questions(
    path: str | PathLike[str],
    video_root: str | PathLike[str] | None = None,
    *,
    answers_from: int | None = None,
    max_skipped: float = 0.5,
) -> Samples:
    """Reads questions from JSON, JSON lines, CSV or TSV (UTF-8).

    Rows with a `problem_type` are of the Video-R1 form (`cacovid.train.video_r1`). All others are
    multiple choice, with these columns, in any case:

    - the question: `question`, `problem`, `prompt` or `query`;
    - the video: `video`, `path`, `video_path`, `video_id` and the like, relative to `video_root`;
      an ending is looked for where there is none;
    - the options: a list (or JSON text of one) under `options`, `choices` or `candidates`, or one
      column each: `A`, `B`, …; `option_a`, …; `option 0`, …; `a0`, …;
    - the answer: `answer`, `solution`, `correct_choice`, `label` and the like: a letter, an
      option's text, or its number;
    - `id`, `question_id` or `qid`, where there is one.

    Answers that are whole numbers are numbers of options, unless each is the text of one of its
    own row's options. They count from 0 if a 0 is among them, from 1 if the number of options is.

    Args:
        path: The file.
        video_root: Where the videos lie; default: the file's folder.
        answers_from: 0 or 1: whole-number answers are numbers of options that count from here;
            None: as above.
        max_skipped: Greatest share of rows that may be unusable.

    Returns:
        The samples; rows that cannot be used are in `skipped`, with the reason: by the line of the
        file where each row has one (`line 4`), of a JSON list by their number from 0 (`row 2`).

    Raises:
        InvalidInputError: for a file that is none of these, without a usable row, with too many
            unusable ones, or whose answers could count from 0 as well as from 1.
    """
    path = Path(path)
    root = path.parent if video_root is None else Path(video_root)
    rows = _table(path) if path.suffix.lower() in (".csv", ".tsv") else read_rows(path)
    made = _Maker(list(rows.values()), root, path, answers_from)
    converted = {name: made(row) for name, row in rows.items()}
    return samples_of(converted, root, path, max_skipped=max_skipped)


def _table(path: Path) -> dict[str, Any]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(read_utf8(path)), delimiter=delimiter)
    rows: dict[str, Any] = {}
    try:
        for row in reader:
            rows[f"line {_first_line(reader, row)}"] = _checked(row)
    except csv.Error as error:
        raise InvalidInputError(f"{path} is no CSV: {error}") from error
    if not rows:
        raise InvalidInputError(
            f"{path} holds no rows; expected a line of names, and one for each question"
        )
    return rows


def _first_line(reader: csv.DictReader[str], row: Mapping[Any, Any]) -> int:
    """The line that a row begins in, from 1: the reader tells its last, and cells may have more."""
    cells = [*row.values(), *row.get(None, ())]
    return reader.line_num - sum(text.count("\n") for text in cells if isinstance(text, str))


def _checked(row: Mapping[Any, Any]) -> Any:
    """The filled cells of a row of a table, or why it cannot be used."""
    if None in row or None in row.values():  # cells without a name, or too few
        return InvalidInputError("another number of cells than the line of names has")
    return {name: text for name, text in row.items() if text.strip()}


class _Maker:
    """Turns rows of a multiple-choice list into rows of the Video-R1 form."""

    def __init__(
        self, rows: Sequence[Any], root: Path, path: Path, answers_from: int | None
    ) -> None:
        self.root = root
        self.numbers = answers_from is not None
        self.first = answers_from or 0
        if answers_from is None:
            self._find_numbering(rows, path)

    def __call__(self, row: Any) -> Any:
        """The row in Video-R1 form, or why it cannot be used."""
        if not isinstance(row, Mapping) or row.get("problem_type") is not None:
            return row
        try:
            return self._converted({str(k).strip().casefold(): v for k, v in row.items()})
        except InvalidInputError as error:
            return error

    def _converted(self, row: dict[str, Any]) -> dict[str, Any]:
        options = _options(row)
        if not options:
            raise InvalidInputError(
                "no options; expected a list under 'options', or a column for each (A, B, …)"
            )
        answer = _get(row, ANSWER, "answer")
        if self.numbers and _is_integer(answer):
            answer = _letter(int(answer) - self.first, answer, options)
        return {
            "problem": _get(row, QUESTION, "question"),
            "solution": answer,
            "problem_type": "multiple choice",
            "options": list(options),
            "path": self._video(_get(row, VIDEO, "video")),
            "id": next((row[n] for n in IDENTITY if row.get(n) not in (None, "")), None),
        }

    def _video(self, name: Any) -> Any:
        if not isinstance(name, str) or Path(name).suffix.lower() in ENDINGS:
            return name
        found = (name + ending for ending in ("", *ENDINGS))
        return next((n for n in found if os.path.isfile(self.root / n)), name)

    def _find_numbering(self, rows: Sequence[Any], path: Path) -> None:
        """Decides for the whole file what whole-number answers say."""
        answers: list[tuple[Any, tuple[str, ...]]] = []
        for row in rows:
            if not isinstance(row, Mapping) or row.get("problem_type") is not None:
                continue
            plain = {str(k).strip().casefold(): v for k, v in row.items()}
            try:
                answers.append((_get(plain, ANSWER, "answer"), _options(plain)))
            except InvalidInputError:
                continue  # told when the row itself is read
        if not answers or not all(_is_integer(answer) for answer, _ in answers):
            return
        if all(str(answer).strip() in map(str.strip, texts) for answer, texts in answers):
            return
        self.numbers = True
        if any(int(answer) == 0 for answer, _ in answers):
            self.first = 0
        elif any(int(answer) == len(texts) for answer, texts in answers):
            self.first = 1
        else:
            raise InvalidInputError(
                f"{path}: the answers are numbers of options, and nothing tells whether they count "
                f"from 0 or from 1; say so (--answers-from 0 or --answers-from 1)"
            )


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = next((row[n] for n in OPTIONS if row.get(n) not in (None, "")), None)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise InvalidInputError(
                f"options are {short(value)}; expected a list, as JSON where it is text"
            ) from None
    if value is not None:
        return read_options(value)
    groups: dict[tuple[str, bool], dict[int, Any]] = {}
    for name, text in row.items():
        found = _OPTION_COLUMN.fullmatch(name)
        if found and text not in (None, ""):
            number = found[2].isdigit()
            place = int(found[2]) if number else ord(found[2]) - ord("a")
            groups.setdefault((found[1], number), {})[place] = text
    if not groups:
        return ()
    columns = max(groups.values(), key=len)
    places = sorted(columns)
    if places[0] > 1 or places != list(range(places[0], places[0] + len(places))):
        raise InvalidInputError(
            f"the columns of options have gaps: those with text are number {short(places)}"
        )
    return tuple(read_text(columns[place], f"option {place}") for place in places)


def _get(row: Mapping[str, Any], names: Sequence[str], what: str) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise InvalidInputError(f"no {what}; expected a column {', '.join(names[:4])} or the like")


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return _INTEGER.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _letter(index: int, answer: Any, options: Sequence[str]) -> str:
    if not 0 <= index < min(len(options), len(ascii_uppercase)):
        raise InvalidInputError(f"the answer {short(answer)} is beyond the {len(options)} options")
    return ascii_uppercase[index]
