"""What results on disk hang on, so that a run that goes on does not mix with another one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from cacovid.train.data import TrainingSample


def entries(section: Any, prefix: str, free: Container[str] = ()) -> dict[str, Any]:
    """The settings of a dataclass by dotted names, those of nested ones too.

    Args:
        section: The dataclass.
        prefix: Stands before every name, e.g. `"training."`.
        free: Names, without the prefix, that a resumed run may change.

    Returns:
        Numbers, texts, None, and lists of them.

    >>> from cacovid.train.replay import RatioSettings
    >>> entries(RatioSettings(base=0.1), "cpo.ratio.")["cpo.ratio.base"]
    0.1
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name in free:
            continue
        if dataclasses.is_dataclass(value):
            found |= entries(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = _plain(value)
    return found


def digest(samples: Collection[TrainingSample]) -> str:
    """How many samples there are, and a short sum over them in their order; videos do not count."""
    total = hashlib.sha256()
    for s in samples:
        total.update(repr((s.id, s.problem, s.solution, s.problem_type, s.options)).encode())
    return f"{len(samples)} ({total.hexdigest()[:12]})"


def weights_of(folders: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of every weight file that lies directly in the folders."""
    found = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in found}


def as_json(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header as a file gives it back: tuples and lists are the same."""
    there: dict[str, Any] = json.loads(json.dumps(header))
    return there


def differences(stored: Any, own: Mapping[str, Any], *, shared: bool = False) -> str:
    """What differs between a run that began and one that is to go on with it, in words.

    Args:
        stored: What the file holds: a dictionary, or something else that says nothing.
        own: Of the run that is to go on.
        shared: Whether names that one of them lacks are passed over (they are of another release).

    Returns:
        The differing entries, or `""`.

    >>> differences({"training.steps": 9, "model": "tiny"}, {"training.steps": 4, "model": "tiny"})
    'training.steps was 9 and is now 4'
    """
    if not isinstance(stored, dict):
        return "which one is not said"
    names = dict.fromkeys((*stored, *own))
    if shared:
        names = dict.fromkeys(name for name in names if name in stored and name in own)
    return "; ".join(
        f"{name} was {_short(stored.get(name))} and is now {_short(own.get(name))}"
        for name in names
        if stored.get(name) != own.get(name)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any) -> Any:
    """`value` as a checkpoint may hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)
