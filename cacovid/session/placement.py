"""Where a session and its policy stand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cacovid.devices import checked_device
from cacovid.errors import InvalidInputError


def device_of(policy: Any, device: torch.device | str | None) -> torch.device:
    """The device that is asked for, with its index, or that of the policy's weights.

    Raises:
        InvalidInputError: for a device that is not there, or neither a CPU nor a CUDA device.
    """
    if device is None:
        weights = policy.parameters() if isinstance(policy, nn.Module) else ()
        return next((weight.device for weight in weights), torch.device("cpu"))
    given = checked_device(device)
    if given.type == "cpu":
        return torch.device("cpu")
    if given.type != "cuda":
        raise InvalidInputError(f"device is {str(device)!r}; expected cpu or cuda")
    return torch.device("cuda", torch.cuda.current_device() if given.index is None else given.index)


def with_weights_on(policy: Any, device: torch.device) -> Any:
    """The policy, or a copy of it on the device: the caller's own is not moved."""
    if not isinstance(policy, nn.Module):
        return policy
    if all(weight.device == device for weight in policy.parameters()):
        return policy
    return copy.deepcopy(policy).to(device)


def check_policy(policy: Any) -> None:
    """Refuses what gives no scores: names and methods, which other parts of the package take.

    Raises:
        InvalidInputError: saying what to pass in its place.
    """
    expected = "expected a policy, or any callable policy(prompt) -> Scores"
    if isinstance(policy, str):
        raise InvalidInputError(
            f"a session was given the name {policy!r}; {expected}: cacovid.load_policy(name) reads "
            f"one. Methods of cacovid.methods choose without a session"
        )
    # Methods stand above sessions and are told by what they have (`cacovid.methods.Method`).
    method = hasattr(policy, "scores") and hasattr(policy, "needs")
    if method and not isinstance(policy, (nn.Module, type)):
        own = getattr(policy, "policy", None)
        hint = "" if own is None else ". Pass its policy: method.policy"
        raise InvalidInputError(
            f"a session was given the method {policy.name!r}, which selects by itself; {expected}"
            f"{hint}"
        )
    if not callable(policy) or isinstance(policy, type):
        raise InvalidInputError(f"a session was given {policy!r:.80}; {expected}")


def first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
