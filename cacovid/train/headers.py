"""What results on disk depend on, so that a run that goes on does not mix with another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cacovid.train.data import TrainingSample


def weights_of(folders: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of every weight file that lies directly in the folders."""
    found = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in found}


def digest_of(samples: Iterable[TrainingSample]) -> str:
    """A digest of the questions' ids, texts and solutions."""
    texts = "\n".join(f"{s.id}\t{s.problem}\t{s.solution}" for s in samples)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def as_json(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header as a file gives it back: tuples and lists are the same."""
    there: dict[str, Any] = json.loads(json.dumps(header))
    return there


def differences(there: Any, header: Mapping[str, Any]) -> str:
    """What a stored header says otherwise than this one, for a message; "" where nothing.

    Args:
        there: What the file holds.
        header: As `as_json` gives it.
    """
    if not isinstance(there, dict):
        return "which one is not said"
    names = sorted(set(there) | set(header))
    differ = [name for name in names if there.get(name) != header.get(name)]
    return "; ".join(f"{n}: {_short(there.get(n))}, now {_short(header.get(n))}" for n in differ)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
