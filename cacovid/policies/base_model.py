"""Which model a policy is for: its hidden size, and names as far as names can tell."""

from __future__ import annotations

import re
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from cacovid.errors import WrongBaseModelError

#: The embedded model's name, and where it lies.
_EMBEDDED = "tiny"
_EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tiny"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: A model's place in the Hub's cache ends in a commit; its id stands before it.
_IN_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]")

_warned: set[tuple[str, str]] = set()


class _Kind(Enum):
    EMBEDDED = "the embedded model"
    HUB = "a Hub id"
    PLACE = "a folder"


def check_base(
    config: Any,
    name: str | None = None,
    base_model: str | nn.Module | None = None,
    hidden_size: int | None = None,
) -> None:
    """Refuses a policy for another model; warns once where names cannot tell.

    Names mean different models beyond doubt where both are Hub ids of different names, or one is
    a Hub id and the other the embedded model. A folder is taken for the model of the same last
    name; of a folder with another name it cannot be told what it holds. A policy in the model's
    own folder is the model's, and a model without a name is judged by its hidden size alone.

    Args:
        config: The policy's configuration; what has no `hidden_size` or `base_model` fits all.
        name: The policy's place; None for one that was loaded by somebody else.
        base_model: The model, or its name.
        hidden_size: The model's hidden size; default: that of `base_model`, if it is a model.

    Raises:
        WrongBaseModelError: naming both models or both sizes.
    """
    model_names = _names(base_model)
    if isinstance(base_model, nn.Module) and hidden_size is None:
        own: Any = base_model.config
        text = own.get_text_config() if hasattr(own, "get_text_config") else own
        hidden_size = text.hidden_size
    policy = "the policy" if name is None else f"the policy {name!r}"
    wanted = getattr(config, "base_model", None)
    width = getattr(config, "hidden_size", None)
    described = _described(base_model, model_names)
    if None not in (width, hidden_size) and width != hidden_size:
        raise WrongBaseModelError(
            f"{policy} is for {wanted or 'a model'} of hidden size {width}; the model"
            f"{f' {described}' if described else ''} has hidden size {hidden_size}. Use it with "
            f"its own base model, or train one for this model"
        )
    if not wanted or not model_names or (name is not None and _beside(name, model_names)):
        return
    verdicts = {same_model(str(wanted), model) for model in model_names}
    if True in verdicts:
        return
    told = f"{policy} is for {str(wanted)!r}; the model is {described}"
    override = (
        "set base_model in the policy's config.json to the model's name (null: any model of its "
        "hidden size)"
    )
    if None not in verdicts:
        raise WrongBaseModelError(
            f"{told}. Use the policy with its own base model, or train one for this model. If both "
            f"are the same weights, {override}"
        )
    pair = (str(wanted), model_names[0])
    if pair not in _warned:
        _warned.add(pair)
        warnings.warn(
            f"{told}. Their names do not tell whether they are the same; the hidden size fits. A "
            f"policy chooses badly for weights that it was not trained for. If they are the same, "
            f"{override}",
            UserWarning,
            stacklevel=3,
        )


def same_model(one: str, other: str) -> bool | None:
    """Whether two names mean one model; None where names cannot tell.

    >>> same_model("llava-hf/llava-7b", "/models/llava-7b")
    True
    >>> same_model("llava-hf/llava-7b", "tiny")
    False
    >>> same_model("llava-hf/llava-7b", "/models/mine") is None
    True
    """
    (kind, name), (other_kind, other_name) = _read(one), _read(other)
    if (kind, name) == (other_kind, other_name):
        return True
    alike = name.rpartition("/")[2] == other_name.rpartition("/")[2]
    if _Kind.PLACE in (kind, other_kind):
        return True if alike else None
    # Two owners may have the same weights under one name; no Hub id is the embedded model.
    return None if alike and kind is other_kind else False


def _read(name: str) -> tuple[_Kind, str]:
    """What a name is, and the name to compare: the Hub takes no notice of case."""
    if name == _EMBEDDED or Path(name).resolve() == _EMBEDDED_FOLDER:
        return _Kind.EMBEDDED, _EMBEDDED
    cached = _IN_HUB_CACHE.search(f"{name}/")
    if cached:
        name = f"{cached[1]}/{cached[2]}"
    if cached or (_HUB_ID.fullmatch(name) and not name.startswith(".") and not Path(name).is_dir()):
        return _Kind.HUB, name.casefold()
    return _Kind.PLACE, Path(name).name.casefold()


def _names(base_model: str | nn.Module | None) -> list[str]:
    if base_model is None:
        return []
    if not isinstance(base_model, nn.Module):
        return [str(base_model)]
    # Either may be set by hand; from_pretrained sets both.
    given = (getattr(one, "name_or_path", "") for one in (base_model, base_model.config))
    return list(dict.fromkeys(str(name) for name in given if name))


def _described(base_model: Any, names: list[str]) -> str:
    named = repr(names[0]) if names else ""
    if not isinstance(base_model, nn.Module):
        return named
    kind = type(base_model).__name__
    return f"{kind} ({named})" if named else kind


def _beside(name: str, model_names: list[str]) -> bool:
    folder = Path(name).resolve().parent
    return any(folder == Path(model).resolve() for model in model_names)
