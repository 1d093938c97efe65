"""The policy out of a published checkpoint, which holds it beside the language model.

Its layout: safetensors in several files with `model.safetensors.index.json`, or in one; the
policy's tensors are called `compression_policy.*`, the rest by the names of
`SelfAttentionPolicy`; `config.json` is the language model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.policies.remote_safetensors import CheckpointFiles
from cacovid.policies.self_attention import SelfAttentionPolicy
from cacovid.policies.self_attention_config import SelfAttentionConfig
from cacovid.policies.storage import load_policy
from cacovid.types import Grid, Prompt

PREFIX = "compression_policy."
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

#: Settings of the language model that the policy's layer shares.
_SHARED = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps")


@dataclass(frozen=True)
class Converted:
    """What came out of a conversion.

    Args:
        policy: The policy, read again from where it was written.
        tensors: How many tensors it has.
        parameters: How many weights.
        bytes_read: Bytes read of the checkpoint's weights.
        left_out: Tensors of the checkpoint that no score depends on.
    """

    policy: SelfAttentionPolicy
    tensors: int
    parameters: int
    bytes_read: int
    left_out: tuple[str, ...]


def convert_checkpoint(
    source: str | PathLike[str],
    output: str | PathLike[str],
    *,
    base_model: str | None = None,
    policy_share: float = 0.5,
    revision: str | None = None,
    token: Any = None,
) -> Converted:
    """Takes the policy out of a published checkpoint, and checks what it wrote.

    Only the policy's tensors are read, from the Hub too. They keep their dtype. Afterwards the
    written policy is read again: its weights have to be the checkpoint's, bit for bit, and its
    scores of a random prompt finite.

    Args:
        source: Directory or Hub id of the checkpoint.
        output: Directory to write `model.safetensors` and `config.json` into.
        base_model: Name of the model that the policy is for, stored with it.
        policy_share: Share of the budget that the scores choose, stored with it.
        revision: Branch, tag or commit on the Hub.
        token: As for `huggingface_hub`.

    Raises:
        InvalidInputError: if the checkpoint holds no such policy, lacks tensors or settings, is
            damaged, or has weights that are no numbers.
    """
    files = CheckpointFiles(str(source), revision, token)
    found = _policy_tensors(files)
    weights: dict[str, Tensor] = {}
    for file, names in found.items():
        for name, value in files.read_tensors(file, names.values()).items():
            weights[_own_name(name)] = value
    unused = tuple(
        name for name in sorted(weights) if name.startswith(SelfAttentionPolicy.unused_weights)
    )
    kept = {name: value for name, value in weights.items() if name not in unused}
    _refuse_no_numbers(kept, files.name)
    config = _config(files, kept, base_model, policy_share)
    policy = SelfAttentionPolicy(config).to(_dtype(kept))
    policy.load_weights(kept, files.name)
    policy.save_pretrained(output)
    return Converted(
        policy=_checked(output, kept),
        tensors=len(kept),
        parameters=sum(value.numel() for value in kept.values()),
        bytes_read=files.bytes_read,
        left_out=unused,
    )


def _policy_tensors(files: CheckpointFiles) -> dict[str, dict[str, str]]:
    """File -> own name -> the checkpoint's name."""
    index = files.read_json(INDEX)
    if index is None:
        names: Any = dict.fromkeys(files.names(SINGLE), SINGLE)
    else:
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict):
            raise InvalidInputError(f"{INDEX} of {files.name!r} holds no weight_map")
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name, file in names.items():
        if f".{PREFIX}" in f".{name}":
            found[file][_own_name(name)] = name
    if not found:
        raise InvalidInputError(
            f"{files.name!r} holds no tensors named {PREFIX}*; expected a published checkpoint "
            f"with its policy. A policy of this project needs no conversion: cacovid.load_policy"
        )
    return found


def _own_name(name: str) -> str:
    return name.rpartition(PREFIX)[2]


def _refuse_no_numbers(weights: Mapping[str, Tensor], origin: str) -> None:
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise InvalidInputError(
                f"{name} of {origin!r} holds NaN or infinities; download the checkpoint again"
            )


def _dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The tensors' dtype; float32 where they differ, which holds any mixture of halves."""
    kinds = {value.dtype for value in weights.values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _config(
    files: CheckpointFiles,
    weights: Mapping[str, Tensor],
    base_model: str | None,
    policy_share: float,
) -> SelfAttentionConfig:
    given = files.read_json("config.json")
    if not isinstance(given, dict):
        raise InvalidInputError(f"{files.name!r} has no config.json, which says how many heads")
    text = given.get("text_config")
    settings = {**given, **text} if isinstance(text, dict) else given
    missing = [name for name in _SHARED if name not in settings]
    rope = settings.get("rope_parameters") or {}
    theta = settings.get("rope_theta", rope.get("rope_theta"))
    if missing or theta is None:
        missing += ["rope_theta"] * (theta is None)
        raise InvalidInputError(
            f"config.json of {files.name!r} says nothing of {', '.join(missing)}; expected the "
            f"configuration of the language model"
        )
    kind = rope.get("rope_type") or (settings.get("rope_scaling") or {}).get("type") or "default"
    if kind != "default":
        raise InvalidInputError(
            f"config.json of {files.name!r} asks for rotary embeddings of type {kind!r}; the "
            f"policy's layer has plain ones"
        )
    try:
        # Widths by the tensors: a checkpoint's vision settings may stand beside the text's.
        hidden = weights["layernorm.weight"].shape[0]
        middle = weights["layers.0.mlp.gate_proj.weight"].shape[0]
        queries = weights["layers.0.self_attn.q_proj.weight"].shape[0]
    except KeyError as error:
        raise InvalidInputError(f"{files.name!r} lacks {PREFIX}{error.args[0]}") from error
    heads = int(settings["num_attention_heads"])
    return SelfAttentionConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=int(settings["num_key_value_heads"]),
        intermediate_size=middle,
        rope_theta=float(theta),
        rms_norm_eps=float(settings["rms_norm_eps"]),
        head_size=None if queries == hidden else queries // heads,
        base_model=base_model,
        policy_share=policy_share,
    )


def _checked(output: str | PathLike[str], weights: Mapping[str, Tensor]) -> SelfAttentionPolicy:
    policy = load_policy(output)
    assert isinstance(policy, SelfAttentionPolicy)
    stored = policy.state_dict()
    changed = [name for name, value in weights.items() if not stored[name].equal(value.float())]
    if changed:
        raise InvalidInputError(
            f"{changed[0]} in {str(output)!r} is not what the checkpoint holds; is the disk full?"
        )
    width = policy.config.hidden_size
    draw = torch.Generator().manual_seed(0)
    prompt = Prompt(
        embeds=torch.randn(8, width, generator=draw),
        position_ids=torch.arange(8),
        video_index=torch.arange(1, 5),
        question_index=torch.arange(5, 8),
        grid=Grid([(2, 1, 2)]),
    )
    with torch.no_grad():
        scores = policy(prompt)
    if not bool(torch.isfinite(scores.token).all()):
        raise InvalidInputError(
            f"the policy in {str(output)!r} gives scores that are no numbers; its weights fit "
            f"together in shape, but not in size"
        )
    return policy
