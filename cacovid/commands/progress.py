"""Progress on standard error: a bar on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: What the stages do, in words.
WORDS = {
    "load": "Loading model",
    "model": "Loading model",
    "data": "Reading the data",
    "read": "Reading the video",
    "vision": "Looking at the frames",
    "score": "Scoring the tokens",
    "select": "Choosing the tokens",
    "score+select": "Scoring and choosing the tokens",
    "prefill": "Reading the prompt",
    "decode": "Writing the answer",
    "overlay": "Drawing the overlay",
}


class Progress:
    """Tells how far a command has come.

    Args:
        stages: How many stages will come; more may.
        bar: A `rich.progress.Progress`, or None for plain lines.
    """

    def __init__(self, stages: int, bar: Any = None) -> None:
        self._bar = bar
        self._begin = time.perf_counter()
        self._total, self._begun = stages, 0
        self._task = bar.add_task("Starting", total=self._total) if bar is not None else None

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""
        words = f"{WORDS.get(name, name)} {detail}".rstrip()
        if self._bar is None:
            seconds = time.perf_counter() - self._begin
            sys.stderr.write(f"[{seconds:5.1f} s] {words}\n")
            sys.stderr.flush()
            return
        self._total = max(self._total, self._begun + 1)
        self._bar.update(self._task, description=words, completed=self._begun, total=self._total)
        self._begun += 1


@contextmanager
def progress(stages: int) -> Iterator[Progress]:
    """Shows progress while the block runs."""
    if not sys.stderr.isatty():
        yield Progress(stages)
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(stages, bar)


class StepsBar:
    """A bar over many like steps, with the latest figures beside it.

    Args:
        bar: A `rich.progress.Progress`, or None for plain lines.
        words: What is being done.
        total: How many steps.
        silent: Tell nothing.
    """

    #: Plain lines come at most this often, in seconds.
    EVERY = 10.0

    def __init__(self, bar: Any, words: str, total: int, silent: bool = False) -> None:
        self._silent = silent
        self._bar, self._words, self._total = bar, words, total
        self._task = bar.add_task(words, total=total) if bar is not None else None
        self._begin = self._last = time.perf_counter()

    def step(
        self, done: int, entry: Mapping[str, float] | None, total: int | None = None
    ) -> None:
        """So many steps are done; `entry` holds new figures, `total` a new number of steps."""
        words = self._words
        if total is not None and total != self._total:
            self._total = total
            if self._bar is not None:
                self._bar.update(self._task, total=total)
        if entry is not None:
            shown = (name for name in SHOWN if name in entry)
            words += "  " + "  ".join(f"{name} {entry[name]:.3g}" for name in shown)
        if self._bar is not None:
            change = {} if entry is None else {"description": words}
            self._bar.update(self._task, completed=done, **change)
            return
        now = time.perf_counter()
        if self._silent:
            return
        if now - self._last >= self.EVERY or done == self._total:
            self._last = now
            sys.stderr.write(f"[{now - self._begin:5.0f} s] {done}/{self._total} {words}\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """Something to look at."""
        if self._bar is not None:
            from rich.text import Text

            # Text, so that square brackets in an id or a path are not taken for markup.
            self._bar.console.print(Text(text))
            return
        if self._silent:
            return
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


#: Figures of a training log that a bar shows.
SHOWN = ("reward", "ratio", "zero_variance", "token_spread", "token_entropy")


@contextmanager
def steps_bar(words: str, total: int) -> Iterator[StepsBar]:
    """Shows steps while the block runs."""
    if os.environ.get("RANK", "0") != "0":  # one of several processes tells
        yield StepsBar(None, words, total, silent=True)
        return
    if not sys.stderr.isatty():
        yield StepsBar(None, words, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield StepsBar(bar, words, total)
