"""Loading a model for a command, with errors for people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cacovid.commands.common import UsageError
from cacovid.errors import CacovidError, InvalidInputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EXPECTED = (
    'expected "tiny" (embedded), a directory with config.json, or a Hub id such as '
    "llava-hf/llava-onevision-qwen2-7b-ov-hf"
)


def load_model(
    name: str,
    policy: str | None = None,
    device: str | None = None,
    *,
    dtype: str | None = None,
    debug: bool = False,
) -> Any:
    """A `cacovid.VideoQA`.

    Args:
        name: `"tiny"`, a directory, or a Hub id.
        policy: Directory or Hub id of a policy.
        device: Where to run; None for a GPU if there is one.
        dtype: Name of a floating dtype; None: float32 on a CPU, bfloat16 elsewhere.
        debug: Leave the libraries' own messages on.

    Raises:
        InvalidInputError: naming the model and why it cannot be loaded, or the device.
    """
    if name != "tiny" and not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        # Else the Hub is asked again and again for a name that it cannot have.
        raise InvalidInputError(f"there is no model {name!r}; {_EXPECTED}")
    if device is not None:
        _check_device(device)
    if not debug:
        quiet_libraries()
    import cacovid

    try:
        return cacovid.VideoQA.from_pretrained(name, policy=policy, device=device, dtype=dtype)
    except CacovidError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInputError(
            f"model {name!r} cannot be loaded: {reason[0]} ({_EXPECTED})"
        ) from error


def check_policy(name: str) -> None:
    """Raises UsageError for what can be neither a policy's directory nor a Hub id."""
    if not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        raise UsageError(
            f"--policy: there is no directory {name!r}; expected one with config.json and "
            f"model.safetensors, or a Hub id (owner/name). A method's name goes with --method"
        )


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInputError(f"--device is {name!r}; expected cpu, cuda or cuda:0") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and count == 0:
        raise InvalidInputError(
            f"--device is {name!r}, but torch sees no GPU; `cacovid doctor` says why"
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InvalidInputError(f"--device is {name!r}, but there are only {count} GPUs, from 0")


def quiet_libraries() -> None:
    """Turns off the libraries' own bars and messages."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
