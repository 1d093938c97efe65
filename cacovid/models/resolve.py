"""What chooses the tokens: a policy, a method, a method's name, or a policy's folder."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from cacovid.errors import InvalidInputError
from cacovid.methods import Method, PolicyMethod, get, names


def resolve_method(chooser: Any, model: nn.Module) -> Method:
    """The method that `chooser` stands for.

    Args:
        chooser: A method's name (`"attention"`, `"attention:2:question"`), `"cacovid"` (the policy
            beside the model's weights) or `"cacovid:NAME"` (another one there), a directory or Hub
            id (`"owner/name"`) of a policy, a policy, or a method.
        model: The model that it is to be used with.

    Raises:
        InvalidInputError: if it is none of these.
        WrongBaseModelError: if a policy was made for another hidden size or base model. Where
            names cannot tell (a model's folder by another name), one warning says so.
    """
    if isinstance(chooser, (str, PathLike)):
        return _named(chooser, model)
    if isinstance(chooser, type):
        raise InvalidInputError(
            f"{chooser.__name__} is a class; expected one of its objects, such as "
            f"{chooser.__name__}(...), or a method's name ({', '.join(names())})"
        )
    if isinstance(chooser, nn.Module) or not isinstance(chooser, Method):
        if not callable(chooser):
            raise InvalidInputError(
                f"{chooser!r} does not choose tokens; expected a policy, a method, a method's name "
                f"({', '.join(names())}), or the directory or Hub id of a policy"
            )
        chooser = PolicyMethod(chooser)
    policy = getattr(chooser, "policy", None)
    if policy is not None:
        from cacovid.policies.base_model import check_base

        check_base(getattr(policy, "config", None), base_model=model)
    return chooser


def _named(name: str | PathLike[str], model: nn.Module) -> Method:
    text = str(name)
    if not text:
        raise InvalidInputError(
            f"a method was asked for by an empty name; expected one of {', '.join(names())}, or "
            f"the directory or Hub id of a policy"
        )
    if text.partition(":")[0] in names():
        return get(text, model=model)
    path = Path(name)
    if path.is_file():
        raise InvalidInputError(
            f"{text!r} is a file; expected a policy's directory (with config.json and "
            f"model.safetensors), a Hub id (owner/name), or a method's name: {', '.join(names())}"
        )
    if path.is_dir() or (isinstance(name, str) and text.count("/") == 1):
        from cacovid.policies import load_policy

        policy = load_policy(text, base_model=model)
        return PolicyMethod(policy.to(next(model.parameters()).device))
    if isinstance(name, PathLike) or "/" in text:
        raise InvalidInputError(
            f"there is no policy directory {text!r}; expected one with config.json and "
            f"model.safetensors, a Hub id (owner/name), or a method's name: {', '.join(names())}"
        )
    return get(text, model=model)
