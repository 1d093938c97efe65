"""Options of how a model is loaded and how much of a video it reads."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from tyro.conf import arg

from cacovid.commands.common import UsageError, check_at_least

DTYPES = ("float32", "bfloat16", "float16")

#: The option --dtype.
DtypeOption: TypeAlias = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]

#: The option --max-frames.
MaxFramesOption: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]


def check_reading(dtype: str | None, max_frames: int | None) -> None:
    """Raises UsageError for a dtype or a number of frames that cannot be."""
    if max_frames is not None:
        check_at_least(max_frames, 1, "--max-frames")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
