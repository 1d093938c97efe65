"""What commands on one video and one question share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from cacovid.commands.common import Command, UsageError, check_at_least
from cacovid.errors import VideoReadError


def check_video(path: Path) -> None:
    """Raises VideoReadError where no video file is; the reader says so only later."""
    if not path.exists():
        raise VideoReadError(f"{path}: there is no such file")
    if path.is_dir():
        raise VideoReadError(f"{path} is a directory; give the path of a video file")


def check_overlay(path: Path, video: Path, option: str) -> None:
    """Raises UsageError where no overlay can be written, or it would overwrite the video."""
    from cacovid.errors import InvalidInputError
    from cacovid.viz import check_overlay_path

    try:
        check_overlay_path(path)
    except InvalidInputError as error:
        raise UsageError(f"{option}: {error}") from None
    if path.exists() and path.samefile(video):
        raise UsageError(f"{option}: {path} is the video itself; give another name")


#: Share of the tokens where neither the command nor the policy says one.
DEFAULT_RETENTION = 0.1


def share_to_keep(qa: Any, asked: float | None, method: str | None) -> float:
    """The share that was asked for, else the policy's own, else a tenth."""
    if asked is not None:
        return asked
    return qa.calibrated_retention(method) or DEFAULT_RETENTION


@dataclass
class PictureCommand(Command):
    """Options of commands that draw what is kept of one video for one question."""

    video: Annotated[tyro.conf.Positional[Path], arg(metavar="VIDEO")]
    """Video file."""
    question: Annotated[tyro.conf.Positional[str], arg(metavar="QUESTION")]
    """The question."""
    output: Annotated[tyro.conf.Positional[Path], arg(metavar="FILE")]
    """The file to write."""
    options: Annotated[tuple[str, ...], arg(metavar="TEXT [TEXT ...]", help_behavior_hint="")] = ()
    """Answers to choose from; they are listed after the question as A, B, C …"""
    model: Annotated[str, arg(metavar="tiny|DIR|ID")] = "tiny"
    """"tiny" (embedded, nothing to download), a directory, or a Hugging Face Hub id."""
    seed: int = 0
    """Seed of the methods that draw."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""
    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Where the model runs, such as cpu or cuda:0. Default: a GPU if there is one."""

    def check_asking(self) -> None:
        """Refuses what can be refused before a model is loaded."""
        check_at_least(self.max_new_tokens, 1, "--max-new-tokens")
        if not self.question.strip():
            raise UsageError("the question is empty")
        check_video(self.video)
