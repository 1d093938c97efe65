"""Imports of the packages that read and write video, when they are used."""

from __future__ import annotations

from typing import Any

from cacovid.errors import MissingDependencyError


def import_av() -> Any:
    """PyAV, or an error that says how to install it."""
    try:
        import av
        import av.error
    except Exception as error:  # a broken native library raises OSError, not ImportError
        raise MissingDependencyError(
            f"video files need PyAV ({error}); install it with: pip install 'cacovid[video]'"
        ) from error
    return av
