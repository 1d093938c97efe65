"""Files that are there whole, or as they were."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, moved into its place at the end, or removed after an error.

    Args:
        path: Where the file is to be; its folder exists. What is there already stays until then.

    Yields:
        A path with the suffix of `path`, by which writers tell the format.

    >>> with written_whole(Path("table.csv")) as part:  # doctest: +SKIP
    ...     part.write_text("a,b")
    """
    part = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")
