"""The public interface, held in `public_api.txt`; run this file to accept a change of it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cacovid

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = ("ops", "reference", "methods", "video")


def _signature(value: object) -> str:
    if not callable(value):
        return ""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"
    # Defaults that are objects print their address; annotations differ between Python versions.
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _members(value: type) -> Iterator[str]:
    for name, member in sorted(vars(value).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, classmethod | staticmethod):
            yield f"    {name}{_signature(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"    {name}{_signature(member)}"
        else:
            yield f"    {name}"


def _lines(prefix: str, module: ModuleType) -> Iterator[str]:
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.ismodule(value) or name == "__version__":
            yield f"{prefix}.{name}"
        elif inspect.isclass(value) and issubclass(value, BaseException):
            bases = ", ".join(base.__name__ for base in value.__bases__)
            yield f"{prefix}.{name}: exception ({bases})"
        elif inspect.isclass(value):
            yield f"{prefix}.{name}{_signature(value)}"
            yield from _members(value)
        else:
            yield f"{prefix}.{name}{_signature(value)}"


def public_api() -> str:
    """Every public name with its signature, one a line."""
    lines = list(_lines("cacovid", cacovid))
    for name in MODULES:
        lines += _lines(f"cacovid.{name}", importlib.import_module(f"cacovid.{name}"))
    return "\n".join(lines) + "\n"


def test_the_public_interface_has_not_changed_unnoticed() -> None:
    wanted, found = SNAPSHOT.read_text().splitlines(), public_api().splitlines()
    change = "\n".join(difflib.unified_diff(wanted, found, "public_api.txt", "the code", n=0))
    assert not change, f"{change}\nif this is meant: python tests/test_public_api.py"


def test_every_public_name_is_documented() -> None:
    bare = []
    for name in MODULES:
        module = importlib.import_module(f"cacovid.{name}")
        for member in module.__all__:
            value = getattr(module, member)
            if callable(value) and not inspect.getdoc(value):
                bare.append(f"{name}.{member}")
    bare += [
        name
        for name in cacovid.__all__
        if (inspect.ismodule(value := getattr(cacovid, name)) or callable(value))
        and not (value.__doc__ or "").strip()
    ]
    assert bare == []


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
