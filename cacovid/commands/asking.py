"""What commands on one video and one question share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from cacovid.commands.common import (
    Command,
    UsageError,
    check_at_least,
    check_options,
    names_policy,
)
from cacovid.commands.reading import DtypeOption, MaxFramesOption, check_reading
from cacovid.errors import MissingDependencyError, VideoReadError


def check_video(path: Path) -> None:
    """Raises VideoReadError where no video file is; the reader says so only later."""
    from cacovid.video.read import refuse_url

    if not path.exists():
        refuse_url(path)
        raise VideoReadError(f"{path}: there is no such file")
    if path.is_dir():
        raise VideoReadError(f"{path} is a directory; give the path of a video file")


def check_overlay(path: Path, video: Path, option: str) -> None:
    """Refuses an overlay that cannot be written, or would overwrite the video.

    Raises:
        UsageError: for the path.
        MissingDependencyError: without Pillow.
    """
    from cacovid.errors import InvalidInputError
    from cacovid.viz import check_overlay_path

    try:
        check_overlay_path(path)
    except InvalidInputError as error:
        raise UsageError(f"{option}: {error}") from None
    if path.exists() and path.samefile(video):
        raise UsageError(f"{option}: {path} is the video itself; give another name")
    check_pillow("overlays")


def check_pillow(what: str) -> None:
    """Raises MissingDependencyError where Pillow, which draws `what`, is not installed."""
    if find_spec("PIL") is None:
        raise MissingDependencyError(f"{what} need Pillow; install it with: pip install pillow")


def named_as_given(answer: Any, chooser: str | None) -> Any:
    """An answer that names a policy as the command line did, where that was a place.

    The policy's own name tells its kind only, whichever it was.
    """
    if chooser is None or not names_policy(chooser):
        return answer
    return replace(answer, method=chooser)


def tokens_line(tokens: Mapping[str, int]) -> str:
    """How many of a video's tokens are kept, in words."""
    video, kept = tokens["video"], tokens["kept"]
    average = tokens.get("layer_average")
    if average is None:
        return f"{video:,} -> {kept:,} ({100 * kept / video:.1f}%)"
    return (
        f"{video:,} -> {average:,} ({100 * average / video:.1f}%), averaged over the layers; "
        f"{kept:,} in the last"
    )


def with_its_option(text: str, options: Sequence[str]) -> str:
    """An answer that is a letter, with the option that it stands for.

    >>> with_its_option("B", ["red", "blue"]), with_its_option("blue", ["red", "blue"])
    ('B. blue', 'blue')
    """
    letter = text.strip().rstrip(".")
    listed = {chr(ord("A") + number): option for number, option in enumerate(options)}
    return f"{letter}. {listed[letter]}" if letter in listed else text


#: Share of the tokens where neither the command nor the policy says one.
DEFAULT_RETENTION = 0.1


def share_to_keep(qa: Any, asked: float | None, method: str | None) -> float:
    """The share that was asked for, else the policy's own, else a tenth."""
    if asked is not None:
        return asked
    return qa.calibrated_retention(method) or DEFAULT_RETENTION


def _share(given: list[str]) -> float:
    try:
        return float(given[0])
    except ValueError:
        raise ValueError(f"{given[0]!r} is no number; expected one such as 0.1") from None


#: The option --retention of commands for which a policy may know better.
RetentionOption: TypeAlias = Annotated[
    float | None,
    # Else the message for what is no number is about types.
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="SHARE",
        instance_from_str=_share,
        is_instance=lambda value: value is None or isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    ),
    arg(metavar="SHARE", help_behavior_hint="(default: the policy's, else 0.1)"),
]


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
    dtype: DtypeOption = None
    """Of the model's weights, such as bfloat16. Default: float32 on a CPU, bfloat16 elsewhere."""
    max_frames: MaxFramesOption = None
    """Frames of the video at most. Default: as the model's directory says, else 32."""

    def check_asking(self) -> None:
        """Refuses what can be refused before a model is loaded."""
        check_at_least(self.max_new_tokens, 1, "--max-new-tokens")
        check_reading(self.dtype, self.max_frames)
        if not self.question.strip():
            raise UsageError("the question is empty")
        check_options(self.options)
        check_video(self.video)

    def load(self, policy: str | None = None) -> Any:
        """The `VideoQA`, reading as many frames as were asked for."""
        from cacovid.commands.loading import load_model

        qa = load_model(self.model, policy, self.device, dtype=self.dtype, debug=self.debug)
        if self.max_frames is not None:
            qa.reading = replace(qa.reading, max_frames=self.max_frames)
        return qa
