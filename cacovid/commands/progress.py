"""Progress on standard error: a bar on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: What the stages do, in words.
WORDS = {
    "load": "Loading the model",
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
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(stages, bar)
