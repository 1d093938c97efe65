"""Hooks and replaced methods on a model's instance that act in the thread that put them there.

All threads that run a model go through the hooks and attributes of one instance. What stands here
knows its thread and lets the others pass, so that threads with hooks of their own share a model.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

_ABSENT = object()

# Torch's tables of hooks and the replaced methods below change in several steps. Reentrant, because
# the garbage collector may end a context at any place.
_changing = threading.RLock()


@contextmanager
def hooked(*hooks: tuple[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While it lasts, these modules have forward pre-hooks, in this thread only.

    Args:
        hooks: A module, and a hook `(module, args, kwargs)` as `register_forward_pre_hook` takes it
            with `with_kwargs=True`.
    """
    owner = threading.get_ident()
    handles = []
    try:
        for module, hook in hooks:
            with _changing:
                own = _in_thread(owner, hook)
                handles.append(module.register_forward_pre_hook(own, with_kwargs=True))
        yield
    finally:
        with _changing:
            for handle in handles:
                handle.remove()


@contextmanager
def replaced(
    *replacements: tuple[nn.Module, str, Callable[[Callable[..., Any]], Callable[..., Any]]],
) -> Iterator[None]:
    """While it lasts, these methods of instances are replaced, in this thread only.

    One function stands on the instance for all threads; it calls the thread's newest replacement,
    or what stood there before. When the last thread leaves, in whatever order, the instance is as
    it was. No class is touched.

    Args:
        replacements: A module, a method's name, and what makes the replacement of the method that
            the thread found there.
    """
    owner = threading.get_ident()
    placed: list[tuple[nn.Module, str, Callable[..., Any]]] = []
    try:
        for module, name, make in replacements:
            placed.append((module, name, _place(module, name, make, owner)))
        yield
    finally:
        for module, name, replacement in reversed(placed):
            _take_away(module, name, replacement, owner)


def is_replaced(module: nn.Module, name: str) -> bool:
    """Whether this thread has replaced the method, and not yet left."""
    method = _methods.get((id(module), name))
    return method is not None and threading.get_ident() in method.own


def _in_thread(owner: int, hook: Callable[..., Any]) -> Callable[..., Any]:
    # While another thread registers or removes a hook of its own, torch may hand over no keywords.
    def own(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        # The compiler cannot trace the thread's number; what it compiles acts in every thread.
        if not torch.compiler.is_compiling() and threading.get_ident() != owner:
            return None
        return hook(module, args, kwargs)

    return own


@dataclass
class _Method:
    """A method of an instance while it is replaced."""

    #: What callers found before, and what the instance itself held.
    original: Callable[..., Any]
    stood: Any
    #: Replacements of each thread, the newest last. Tuples, which other threads may read meanwhile.
    own: dict[int, tuple[Callable[..., Any], ...]] = field(default_factory=dict)


#: By the module's id, which cannot be another's while the original method is held.
_methods: dict[tuple[int, str], _Method] = {}


def _place(module: nn.Module, name: str, make: Callable[..., Any], owner: int) -> Any:
    with _changing:
        method = _methods.get((id(module), name))
        if method is None:
            method = _Method(getattr(module, name), vars(module).get(name, _ABSENT))
        earlier = method.own.get(owner, ())
        replacement = make(earlier[-1] if earlier else method.original)
        method.own[owner] = (*earlier, replacement)
        if (id(module), name) not in _methods:
            _methods[id(module), name] = method
            # Straight into __dict__: nn.Module.__setattr__ would look through its registries first.
            vars(module)[name] = _chosen_by_thread(method)
        return replacement


def _take_away(module: nn.Module, name: str, replacement: Any, owner: int) -> None:
    with _changing:
        method = _methods[id(module), name]
        method.own[owner] = tuple(one for one in method.own[owner] if one is not replacement)
        if not method.own[owner]:
            del method.own[owner]
        if method.own:
            return
        del _methods[id(module), name]
        if method.stood is _ABSENT:
            vars(module).pop(name, None)
        else:
            vars(module)[name] = method.stood


def _chosen_by_thread(method: _Method) -> Callable[..., Any]:
    # `wraps` keeps the signature, by which generate decides what the model takes.
    @functools.wraps(method.original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        own = method.own.get(threading.get_ident())
        return (own[-1] if own else method.original)(*args, **kwargs)

    return chosen
