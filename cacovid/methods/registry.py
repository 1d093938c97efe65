"""The register of methods: by name, with settings in the name or beside it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cacovid.errors import InvalidInputError
from cacovid.methods.base import Method


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., Any]
    takes_model: bool


_ENTRIES: dict[str, _Entry] = {}


def register(
    name: str, factory: Callable[..., Any], *, takes_model: bool = False, replace: bool = False
) -> None:
    """Makes a method known by name.

    Args:
        name: The name, without a colon.
        factory: Called with the settings; returns the method, or an `InsideMethod`.
        takes_model: Whether the factory wants the model, as its keyword `model`.
        replace: Whether a method that has the name already may go.

    Raises:
        InvalidInputError: for an empty name or one with a colon, or a name that is taken.
    """
    if not name or ":" in name:
        raise InvalidInputError(
            f"{name!r} cannot be a method's name: it must not be empty or hold a colon, which "
            f"begins the settings ('attention:2:question')"
        )
    if name in _ENTRIES and not replace:
        raise InvalidInputError(f"method {name!r} is registered already; pass replace=True")
    _ENTRIES[name] = _Entry(factory, takes_model)


def names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(sorted(_ENTRIES))


def needs_model(name: str) -> bool:
    """Whether a name (settings may follow it) is of a method that `get` makes for a model only."""
    entry = _ENTRIES.get(name.partition(":")[0])
    return entry is not None and entry.takes_model


def get(name: str, model: Any = None, **settings: Any) -> Method:
    """A method by its name.

    Args:
        name: One of `names()`; settings may follow after colons, in the order of the factory's
            parameters, as in `"attention:2:question"`.
        model: The model, for the methods that run inside it.
        **settings: Settings by name, as in `get("attention", layer=2)`.

    Raises:
        InvalidInputError: for an unknown name (the known ones are listed) or settings that the
            method does not take.

    >>> get("attention:2:question").name
    'attention:2:question'
    """
    if not isinstance(name, str) or not name:
        raise InvalidInputError(
            f"a method was asked for by {name!r}; expected a name: {', '.join(names())}"
        )
    base, *positional = name.split(":")
    entry = _ENTRIES.get(base)
    if entry is None:
        close = difflib.get_close_matches(base, _ENTRIES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidInputError(f"unknown method {name!r}; known: {', '.join(names())}{hint}")
    if entry.takes_model:
        if model is None:
            raise InvalidInputError(
                f"method {base!r} runs inside a model; pass it: methods.get({name!r}, model=model)"
            )
        settings["model"] = model
    parameters = inspect.signature(entry.factory).parameters
    taken = [parameter for parameter in parameters if parameter != "model"]
    # Text after colons fills the parameters in order, wherever `model` stands among them.
    by_name = dict(zip(taken, positional, strict=False))
    wrong = sorted(set(settings) - set(parameters)) + sorted(set(settings) & set(by_name))
    if len(positional) > len(taken) or wrong:
        raise InvalidInputError(
            f"method {base!r} takes the settings {', '.join(taken) or '(none)'}; got "
            f"{name!r}{' and ' + ', '.join(wrong) if wrong else ''}"
        )
    return entry.factory(**by_name, **settings)
