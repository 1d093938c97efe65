"""Loading a model for a command, with errors for people."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from cacovid.commands.common import UsageError, no_directory
from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.models.defaults import is_place, model_location

#: Without one of these a model loads not at all, or fails at its first question.
_NEEDED = ("transformers", "accelerate", "jinja2")


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
        InvalidInputError: naming the model and why it cannot be loaded.
        MissingDependencyError: naming the package that models need, and how to install it.
        UsageError: for a device that is not there.
    """
    model_location(name)
    if device is not None:
        check_device(device)
    check_packages()
    if not debug:
        quiet_libraries()
    import cacovid

    return cacovid.VideoQA.from_pretrained(name, policy=policy, device=device, dtype=dtype)


def check_policy(name: str) -> None:
    """Raises UsageError for what can be neither a policy's directory nor a Hub id."""
    if not is_place(name):
        raise UsageError(
            f"--policy: {no_directory(name)}; expected one with config.json and "
            f"model.safetensors, or a Hub id (owner/name). A method's name goes with --method"
        )


def check_device(name: str, option: str = "--device") -> None:
    """Raises UsageError for what is no device that models run on here."""
    from cacovid.devices import checked_device

    try:
        checked_device(name, option)
    except InvalidInputError as error:
        raise UsageError(str(error)) from None


def check_packages() -> None:
    """Raises MissingDependencyError where a package that models need is not installed."""
    for package in _NEEDED:
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"models need {package}, which is not installed: pip install 'cacovid[models]'"
            )


def quiet_libraries() -> None:
    """Turns off the libraries' own bars and messages."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
