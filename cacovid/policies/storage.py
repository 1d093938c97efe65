"""Policies on disk and on the Hub: `model.safetensors` and `config.json`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from huggingface_hub import ModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cacovid.errors import InvalidInputError
from cacovid.files import write_text, written_whole
from cacovid.policies.base_model import check_base
from cacovid.policies.config import PolicyConfig
from cacovid.types import Prompt, Scores

CONFIG, WEIGHTS = "config.json", "model.safetensors"

#: What the Hub is asked with. A folder has no say in it.
_HUB_NAMES = ("revision", "token", "cache_dir", "local_files_only")

#: `policy_type` of config.json -> class.
_TYPES: dict[str, type[StoredPolicy]] = {}


class StoredPolicy(nn.Module, ModelHubMixin, library_name="cacovid", tags=["cacovid"]):
    """A policy that can be stored: has a `config`, a `policy_type` and a `config_class`.

    `save_pretrained`, `from_pretrained` and `push_to_hub` work as in `huggingface_hub`; weights are
    safetensors only.
    """

    policy_type: ClassVar[str]
    config_class: ClassVar[type[PolicyConfig]]
    question_aware: ClassVar[bool] = True
    #: Whether scores hang on the text around the question, too.
    reads_prompt: ClassVar[bool] = False
    #: How tokens are chosen by the scores: within quotas of the frames (ALGORITHMS 1.2), or one
    #: top-k over the whole video (ALGORITHMS 2.3).
    selection: ClassVar[Literal["frames", "top_k"]] = "frames"
    #: Weights that a file may hold and that no score depends on.
    unused_weights: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _TYPES[cls.policy_type] = cls

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.policy_type

    def __call__(self, prompt: Prompt) -> Scores:
        """Scores of the prompt's video tokens and frames."""
        return super().__call__(prompt)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push: Any,
    ) -> str | None:
        """Writes the weights and the configuration; each file whole or not at all.

        Args:
            save_directory: Made if it is not there.
            push_to_hub: Whether to upload it afterwards.
            repo_id: Name on the Hub; None: the directory's name.
            config: Not used: the policy's own configuration is written. `push_to_hub` gives it.
            model_card_kwargs: Not used: no model card is written. `push_to_hub` gives it.
            **push: Further arguments of `push_to_hub`, such as `private`.

        Returns:
            The address of the commit, if it was uploaded.

        Raises:
            InvalidInputError: for arguments of `push_to_hub` without `push_to_hub=True`.
        """
        if not push_to_hub and (push or repo_id is not None):
            given = ", ".join(sorted([*push, *(["repo_id"] if repo_id is not None else [])]))
            raise InvalidInputError(
                f"save_pretrained was given {given}, which is for uploading; expected "
                f"push_to_hub=True beside it"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self._own_weights()}
        text = json.dumps({"policy_type": self.policy_type, **self.config.to_dict()}, indent=2)
        with written_whole(folder / WEIGHTS) as part:
            save_file(weights, part)
            part.chmod(0o644)  # safetensors writes files for their owner alone
        write_text(folder / CONFIG, text + "\n")
        if not push_to_hub:
            return None
        return str(self.push_to_hub(repo_id or folder.name, **push))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **hub: Any
    ) -> Self:
        """Reads a policy of this class from a directory or the Hub.

        Args:
            pretrained_model_name_or_path: Directory or Hub id.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            InvalidInputError: if files are missing or damaged, or hold another kind of policy.
        """
        policy = load_policy(pretrained_model_name_or_path, **hub)
        if not isinstance(policy, cls):
            raise InvalidInputError(
                f"{str(pretrained_model_name_or_path)!r} holds a {type(policy).__name__}, not a "
                f"{cls.__name__}; use cacovid.load_policy"
            )
        return policy

    def load_weights(self, weights: dict[str, torch.Tensor], origin: str) -> None:
        """Takes over weights, all of them.

        Args:
            weights: By name; may hold `unused_weights` besides.
            origin: For messages: where they come from.

        Raises:
            InvalidInputError: for a tensor that is missing, not known or of another shape.
        """
        own = dict(self._own_weights())
        given = {k: v for k, v in weights.items() if not k.startswith(self.unused_weights or "\0")}
        missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
        if missing or unknown:
            raise InvalidInputError(
                f"the weights of {origin} do not make a {type(self).__name__}: missing "
                f"{_few(missing)}; not known {_few(unknown)}"
            )
        for name, value in own.items():
            if given[name].shape != value.shape:
                raise InvalidInputError(
                    f"{name} of {origin} is {tuple(given[name].shape)}; the configuration says "
                    f"{tuple(value.shape)}"
                )
        self.load_state_dict(given)

    def _own_weights(self) -> list[tuple[str, torch.Tensor]]:
        return list(self.state_dict().items())


def load_policy(
    name: str | PathLike[str],
    base_model: str | nn.Module | None = None,
    hidden_size: int | None = None,
    **hub: Any,
) -> StoredPolicy:
    """Reads a policy of any kind.

    Args:
        name: Directory or Hub id (`owner/name`).
        base_model: The model that it is to serve: its name, or the model itself (then its hidden
            size counts too). A folder is taken for the model of the same name; where names cannot
            tell, one warning says so.
        hidden_size: The model's hidden size.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The policy, in evaluation mode, on the CPU.

    Raises:
        InvalidInputError: if files are missing or damaged, or of a kind that is not known; for a
            name that is none, such as that of a file, or another keyword.
        WrongBaseModelError: if the policy is for another model or hidden size; both are named.
    """
    _check_place(name)
    _check_hub(hub)
    cls, values = _read_config(name, hub)
    config = cls.config_class.from_dict(values)
    check_base(config, str(name), base_model, hidden_size)
    path = _file(name, WEIGHTS, hub)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(f"{path} is no whole safetensors file: {error}") from error
    policy = cls(config)
    policy.load_weights(weights, str(path))
    return policy.eval()


def policy_class(name: str | PathLike[str], **hub: Any) -> type[StoredPolicy]:
    """What kind of policy a place holds, by its configuration alone.

    Args:
        name: Directory or Hub id (`owner/name`).
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        InvalidInputError: if there is no configuration of a policy of a known kind.
    """
    _check_place(name)
    _check_hub(hub)
    return _read_config(name, hub)[0]


def _check_place(name: Any) -> None:
    expected = (
        f"expected a policy's directory (with {CONFIG} and {WEIGHTS}), or a Hub id (owner/name)"
    )
    if not isinstance(name, (str, PathLike)) or not str(name):
        raise InvalidInputError(f"a policy was asked for by the name {name!r}; {expected}")
    if Path(name).is_file():
        raise InvalidInputError(f"{str(name)!r} is a file; {expected}")


def _check_hub(hub: Mapping[str, Any]) -> None:
    for given in hub:
        if given not in _HUB_NAMES:
            # Misspelled ones of this function come here, too.
            known = (*_HUB_NAMES, "base_model", "hidden_size")
            near = difflib.get_close_matches(given, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InvalidInputError(
                f"{given!r} is no argument of load_policy{hint}; expected {', '.join(known)}"
            )


def _read_config(
    name: str | PathLike[str], hub: dict[str, Any]
) -> tuple[type[StoredPolicy], dict[str, Any]]:
    config_path = _file(name, CONFIG, hub)
    try:
        values = json.loads(config_path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{config_path} is not JSON: {error}") from error
    kind = values.get("policy_type") if isinstance(values, dict) else None
    if kind not in _TYPES:
        raise InvalidInputError(
            f"{config_path} says policy_type {kind!r}; expected one of "
            f"{', '.join(sorted(_TYPES))}. Is it a policy's folder, not a model's?"
        )
    return _TYPES[kind], values


def _file(name: str | PathLike[str], file: str, hub: dict[str, Any]) -> Path:
    if Path(name).is_dir():
        path = Path(name) / file
        if not path.is_file():
            raise InvalidInputError(
                f"the policy directory {str(name)!r} has no {file}; expected {CONFIG} and {WEIGHTS}"
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(name), file, **hub))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidInputError(
            f"there is no policy directory {str(name)!r}, and {file} could not be had from the "
            f"Hub: {error}"
        ) from error


def _few(names: list[str]) -> str:
    return (", ".join(names[:4]) + (" ..." if len(names) > 4 else "")) or "none"
