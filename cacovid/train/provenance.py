"""What the result of a run hangs on, by the names of its configuration; checkpoints keep it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Container, Mapping, Sequence
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


def digest(samples: Sequence[TrainingSample]) -> str:
    """How many samples there are, and a short sum over them in their order; videos do not count.

    Args:
        samples: The samples.
    """
    total = hashlib.sha256()
    for s in samples:
        total.update(repr((s.id, s.problem, s.solution, s.problem_type, s.options)).encode())
    return f"{len(samples)} ({total.hexdigest()[:12]})"


def differences(stored: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """The entries that both have and that differ, in words.

    Args:
        stored: Of the run that began.
        own: Of the run that is to go on with it; names that one of them lacks are of another
            release, and are not compared.

    >>> differences({"training.steps": 9, "model": "tiny"}, {"training.steps": 4, "model": "tiny"})
    ['training.steps was 9 and is now 4']
    """
    return [
        f"{name} was {value!r} and is now {own[name]!r}"
        for name, value in stored.items()
        if name in own and own[name] != value
    ]


def _plain(value: Any) -> Any:
    """`value` as a checkpoint may hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)
