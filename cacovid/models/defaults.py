"""Where a model's name points, and how its directory wants videos read and questions put.

A model's directory may hold `cacovid.json`:

    {"max_frames": 16, "fps": 4.0, "closing": false}

`max_frames` and `fps` are what `cacovid.video.FrameSampling` takes; `closing` tells whether a
sentence on the kind of answer follows a problem (`cacovid.train.wording`). Without the file: 32
frames at one frame a second at most, and a closing sentence.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from cacovid.errors import InvalidInputError

#: The embedded model's name, and where it lives.
TINY = "tiny"
TINY_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tiny"

FILE = "cacovid.json"

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
EXPECTED_MODEL = (
    'expected "tiny" (embedded), a directory with config.json, or a Hub id such as '
    "llava-hf/llava-onevision-qwen2-7b-ov-hf"
)


@dataclass(frozen=True)
class ReadingDefaults:
    """How many frames of a video a model is shown, and how problems are put to it.

    Args:
        max_frames: Frames at most.
        fps: Frames a second at most.
        closing: Whether problems of data files end with a sentence on the kind of answer; not for
            small models, which know no words but those that they were trained with.
    """

    max_frames: int = 32
    fps: float = 1.0
    closing: bool = True


def is_place(name: str | PathLike[str]) -> bool:
    """Whether a name is a directory's, or has the form of a Hub id (`owner/name`).

    For other names the Hub need not be asked, which it would be again and again; nor for a file's.
    """
    if not str(name) or Path(name).is_file():  # an empty path is the working folder
        return False
    return Path(name).is_dir() or _HUB_ID.fullmatch(str(name)) is not None


def model_location(name: str | PathLike[str]) -> str:
    """Directory or Hub id of a model; `"tiny"` is the embedded one.

    Raises:
        InvalidInputError: for a name that is none of these, or if the embedded model is missing
            from the installation.
    """
    if str(name) != TINY:
        if Path(name).is_file():
            raise InvalidInputError(f"model {str(name)!r} is a file; {EXPECTED_MODEL}")
        if not is_place(name):
            raise InvalidInputError(f"there is no model {str(name)!r}; {EXPECTED_MODEL}")
        return str(name)
    if not (TINY_FOLDER / "config.json").exists():
        raise InvalidInputError(
            f"the embedded model is not in this installation ({TINY_FOLDER} is empty); train it "
            f"with `python -m cacovid.synthetic.tiny`, or name a directory or Hub id"
        )
    return str(TINY_FOLDER)


def reading_defaults(location: str) -> ReadingDefaults:
    """What the model's `cacovid.json` says, or the general defaults.

    Raises:
        InvalidInputError: if the file says something that cannot be.
    """
    path = Path(location) / FILE
    if not path.exists():
        return ReadingDefaults()
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        known = {name: data[name] for name in ("max_frames", "fps", "closing") if name in data}
        out = ReadingDefaults(**known)
        if int(out.max_frames) < 1 or float(out.fps) <= 0:
            raise ValueError("max_frames and fps have to be positive")
        if not isinstance(out.closing, bool):
            raise ValueError("closing has to be true or false")
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f'{path} cannot be used ({error}); expected e.g. {{"max_frames": 16, "fps": 4.0}}'
        ) from error
    return out
