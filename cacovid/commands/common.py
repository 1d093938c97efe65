"""What the sub-commands share: options, wrong usage, and output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Rows that cannot be used are told one by one up to so many.
SHOWN_ROWS = 20


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


def check_method(name: str) -> None:
    """Raises UsageError for a method that is not known, or settings that it does not take."""
    from cacovid import methods
    from cacovid.errors import InvalidInputError
    from cacovid.methods.registry import needs_model

    if needs_model(name):
        return  # a policy beside the model, which is not loaded yet
    try:
        methods.get(name)
    except InvalidInputError as error:
        raise UsageError(f"--method: {error}") from None


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


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, sections: int = 0) -> None:
    """A table on standard output, with a rule after every `sections` rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, so that square brackets in an answer or a question type are not taken for markup.
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(Text(column))
    for number, row in enumerate(rows, start=1):
        table.add_row(*map(Text, row), end_section=bool(sections) and number % sections == 0)
    # Where nobody's window limits it, nothing is cut.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output, on one line."""
    write_line(json.dumps(value, ensure_ascii=False, allow_nan=False))
