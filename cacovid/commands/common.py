"""What the sub-commands share: options, wrong usage, and output."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Rows that cannot be used are told one by one up to so many.
SHOWN_ROWS = 20

#: Columns of a window that nothing is too wide for.
_UNLIMITED = 100_000


class UsageError(Exception):
    """An option's value that the command cannot take; ends with exit status 2."""


@dataclass(kw_only=True)
class Command:
    """Options that every command takes."""

    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Does the work; what it raises becomes an error message."""
        raise NotImplementedError


def check_retention(value: float) -> None:
    """Raises UsageError for a retention outside (0, 1]."""
    if not 0.0 < value <= 1.0:
        raise UsageError(
            f"--retention is {value:g}; expected a number above 0 and at most 1, e.g. 0.1 to keep "
            f"a tenth of the video's tokens"
        )


def check_retentions(values: Sequence[float]) -> None:
    """Raises UsageError for no retention, for one twice, and for one outside (0, 1]."""
    for value in values:
        check_retention(value)
    if not values or len(set(values)) < len(values):
        raise UsageError("--retention names no share, or one twice; name each once")


def check_at_least(value: int, least: int, option: str) -> None:
    """Raises UsageError for a value below `least`."""
    if value < least:
        raise UsageError(f"{option} is {value}; expected at least {least}")


def check_method(name: str, option: str = "--method") -> None:
    """Raises UsageError for what is no method, its settings, nor a policy's directory or Hub id."""
    from cacovid import methods
    from cacovid.errors import InvalidInputError
    from cacovid.methods.registry import needs_model

    if needs_model(name) or names_policy(name):
        return  # the model is not loaded yet
    try:
        methods.get(name)
    except InvalidInputError as error:
        if name.partition(":")[0] not in methods.names() and Path(name).is_file():
            raise UsageError(
                f"{option}: {name!r} is a file; expected a policy's directory (with config.json "
                f"and model.safetensors), a Hub id (owner/name), or a method's name: "
                f"{', '.join(methods.names())}"
            ) from None
        hint = f"; there is no directory {name!r} either" if "/" in name else ""
        raise UsageError(f"{option}: {error}{hint}") from None


def no_directory(name: str) -> str:
    """What a name is that is no directory's: for messages."""
    return f"{name!r} is a file" if Path(name).is_file() else f"there is no directory {name!r}"


def names_policy(name: str) -> bool:
    """Whether a method's name is the directory or Hub id of a policy."""
    from cacovid import methods
    from cacovid.models.defaults import is_place

    return name.partition(":")[0] not in methods.names() and is_place(name)


def check_output(path: Path, option: str, *inputs: Path | str | None) -> None:
    """Raises UsageError where a file cannot be written; ask before long work.

    Args:
        path: The file; what it holds is replaced. Folders that are not there are made.
        option: How messages call it.
        *inputs: Files that must not be replaced.
    """
    for read in inputs:
        if read is not None and path.exists() and Path(read).exists() and path.samefile(read):
            raise UsageError(f"{option}: {path} is read here; give another name")
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder; expected the name of a file")
    check_output_folder(path.parent, option)


def check_output_folder(folder: Path, option: str) -> None:
    """Raises UsageError for a folder that takes no files, or that cannot be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{option}: {there} is a file; expected a folder")
    try:
        # Rights alone do not tell: file systems are read-only, or take no files from anybody.
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"{option}: the folder {there} takes no files ({reason})") from None


def tell_left_out(samples: Any, full_list: str | None = None) -> None:
    """Tells on standard error which rows of the data cannot be used, and which have a new id.

    One of several processes tells.

    Args:
        samples: `cacovid.train.data.Samples`.
        full_list: Where all of them are listed when there are many; None: tell all.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    lines = [f"left out {row}: {reason}" for row, reason in samples.skipped]
    lines += [f"{row} has the id of another question; it is {id!r}" for row, id in samples.renamed]
    shown = len(lines) if full_list is None else SHOWN_ROWS
    for line in lines[:shown]:
        sys.stderr.write(line + "\n")
    if len(lines) > shown:
        sys.stderr.write(f"and {len(lines) - shown:,} rows more; {full_list}\n")


def check_options(options: Sequence[str]) -> None:
    """Raises UsageError for options of which nothing can be chosen."""
    if options and (not 2 <= len(options) <= 26 or len(set(options)) < len(options)):
        raise UsageError(
            f"--options are {', '.join(map(repr, options))}; expected 2 to 26 different answers"
        )


def use_backend(name: str) -> None:
    """Makes the ops run on one backend for the rest of this process.

    Raises:
        UsageError: for a name that is no backend.
    """
    from cacovid import settings

    variable = settings.VARIABLES["CACOVID_BACKEND"]
    if name not in variable.choices:
        raise UsageError(f"--backend is {name!r}; expected one of {', '.join(variable.choices)}")
    os.environ[variable.name] = name


def write_line(text: str = "") -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    sections: int = 0,
    keys: int | None = None,
) -> None:
    """A table on standard output; nothing in it is cut or wrapped.

    In a window that is too narrow it becomes several tables below each other, which all begin with
    the columns that tell the rows apart.

    Args:
        columns: Headings.
        rows: Cells.
        sections: A rule stands after so many rows; 0: none.
        keys: Columns that stand in every table; None: as many as tell the rows apart.
    """
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)

    def build(shown: Sequence[int]) -> tuple[Table, int]:
        table = Table(box=box.SIMPLE_HEAD)
        for column in shown:
            # Text, so that square brackets in an answer or a question type are not taken for
            # markup.
            table.add_column(Text(columns[column]), no_wrap=True)
        for number, row in enumerate(rows, start=1):
            cells = [Text(row[column]) for column in shown]
            table.add_row(*cells, end_section=bool(sections) and number % sections == 0)
        unlimited = console.options.update(max_width=_UNLIMITED)
        return table, Measurement.get(console, unlimited, table).maximum

    everywhere = list(range(_telling_columns(rows) if keys is None else keys))
    # Where nobody's window limits it, the table stays in one piece.
    window = console.width if sys.stdout.isatty() else _UNLIMITED
    shown = list(everywhere)
    for column in range(len(everywhere), len(columns)):
        if len(shown) > len(everywhere) and build([*shown, column])[1] > window:
            _print_table(*build(shown))
            shown = list(everywhere)
        shown.append(column)
    _print_table(*build(shown))


def _print_table(table: Any, width: int) -> None:
    """Prints a table at its own width, whatever the window's."""
    from rich.console import Console

    # Of a dumb terminal the width counts only together with a height.
    Console(file=sys.stdout, width=width, height=25).print(table)


def _telling_columns(rows: Sequence[Sequence[str]]) -> int:
    """How many of the first columns tell all rows apart; 1 where even all of them do not."""
    for count in range(1, len(rows[0]) if rows else 0):
        if len({tuple(row[:count]) for row in rows}) == len(rows):
            return count
    return 1


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output, on one line."""
    write_line(json.dumps(value, ensure_ascii=False, allow_nan=False))
