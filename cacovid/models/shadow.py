"""Attributes of a model's instance that hide those of its class for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ABSENT = object()


@contextmanager
def shadowed(*replacements: tuple[nn.Module, str, Any]) -> Iterator[None]:
    """While it lasts, these attributes are replaced; leaving restores the instances exactly.

    Args:
        replacements: A module, an attribute's name, and what stands there meanwhile. No class is
            touched.
    """
    saved: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, name, value in replacements:
            # Straight into __dict__: nn.Module.__setattr__ would look through its registries first.
            saved.append((module, name, vars(module).get(name, _ABSENT)))
            vars(module)[name] = value
        yield
    finally:
        for module, name, value in reversed(saved):
            if value is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = value
