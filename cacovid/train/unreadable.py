"""Samples whose videos cannot be read, over all processes of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cacovid.files import write_text

#: Tried samples before their share may stop a run: of fewer, one is a large share.
LEAST_TRIED = 20


class Unreadable:
    """The list, and its file.

    Args:
        path: The file, `{"unreadable": {id: reason}}`; written whole at every change.
        writes: Whether this process writes it.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        #: `(id, reason)` of each.
        self.entries: list[tuple[str, str]] = []

    def add(self, entries: Sequence[tuple[str, str]]) -> None:
        """Lists further ones, and writes the file; without any, so that it tells of this run."""
        self.entries += entries
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"unreadable": dict(self.entries)}) + "\n")

    def too_many(self, tried: int, most: float) -> str | None:
        """What to tell when more than the share `most` of the tried samples failed, else None."""
        failed = len(self.entries)
        if tried < LEAST_TRIED or failed <= most * tried:
            return None
        shown = "\n".join(f"  {name}: {reason}" for name, reason in self.entries[:50])
        return (
            f"{failed} of {tried} samples have unreadable videos, more than the share {most} that "
            f"is allowed (max_unreadable); all are listed in {self.path}:\n{shown}"
        )
