"""The exceptions that `cacovid` raises for its callers.

Every message says what was given, what was expected and what to do.
"""

from __future__ import annotations


class CacovidError(Exception):
    """Base class of all errors that `cacovid` raises on purpose."""


class InvalidInputError(CacovidError, ValueError):
    """A value, shape, dtype or device that an operation cannot take."""


class UnsupportedModelError(CacovidError, ValueError):
    """A model, layout or generation setting that no adapter handles."""


class WrongBaseModelError(CacovidError, ValueError):
    """A policy that was trained for another base model or hidden size."""


class VideoReadError(CacovidError, OSError):
    """A video file that cannot be read; the message names the file and the reason."""


class MissingDependencyError(CacovidError, ImportError):
    """An optional package that is needed here and not installed."""
