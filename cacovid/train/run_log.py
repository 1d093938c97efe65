"""The log of a run: JSON lines, one every few steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cacovid.files import write_text


def append_entry(path: Path, entry: Mapping[str, float]) -> None:
    """Adds an entry; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def cut_after(path: Path, step: int) -> None:
    """Drops entries after `step`, which a resumed run writes again, and a line that a kill cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))
