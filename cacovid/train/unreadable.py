"""Samples whose videos cannot be read, over all processes of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from cacovid.files import write_text

#: Tried samples before their share may stop a run: of fewer, one is a large share.
LEAST_TRIED = 20


class Unreadable:
    """The list, and its file. A sample counts once, however often it was tried.

    Args:
        path: The file, `{"unreadable": {id: reason}}`; written whole at every change.
        writes: Whether this process writes it.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        #: The reason by the sample's id, in the order of the failures.
        self.reasons: dict[str, str] = {}

    @property
    def entries(self) -> list[tuple[str, str]]:
        """`(id, reason)` of each sample."""
        return list(self.reasons.items())

    def take_up(self, entries: Iterable[Sequence[str]]) -> None:
        """The list of a run that goes on, in place of this one."""
        self.reasons = {}
        for name, reason in entries:
            self.reasons.setdefault(name, reason)

    def add(self, entries: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Lists further ones, and writes the file; without any, so that it tells of this run.

        Returns:
            Those that were not listed yet.
        """
        new = {name: reason for name, reason in entries if name not in self.reasons}
        self.reasons |= new
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"unreadable": self.reasons}) + "\n")
        return list(new.items())

    def too_many(self, tried: int, planned: int, most: float) -> str | None:
        """What stops the run, or None.

        Args:
            tried: How many samples were tried, each counted once.
            planned: How many the whole run tries.
            most: The greatest share of them that may fail.

        Returns:
            What to tell when more than the share `most` of the tried samples failed (after 20, or
            all of a run that has fewer), or when all samples of the run did; else None.
        """
        failed = len(self.reasons)
        nothing = failed >= tried >= planned
        if tried < min(LEAST_TRIED, planned) or not (failed > most * tried or nothing):
            return None
        told = f"more than the share {most} that is allowed (max_unreadable)"
        if failed <= most * tried:
            told = "so that nothing was learned"
        shown = "\n".join(f"  {name}: {reason}" for name, reason in self.entries[:50])
        return (
            f"{failed} of {tried} samples have unreadable videos, {told}. Look at the files, and "
            f"at where they are looked for (data.video_root); all are listed in {self.path}:\n"
            f"{shown}"
        )
