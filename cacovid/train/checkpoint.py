"""Checkpoints of a training run: a folder each, there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cacovid.errors import InvalidInputError
from cacovid.policies import StoredPolicy, load_policy
from cacovid.train.provenance import differences

_STATE = "trainer.pt"

#: What the state of every release has.
_ENTRIES = {"step", "optimizer", "schedule", "unreadable"}


def write_checkpoint(
    folder: Path, step: int, policy: StoredPolicy, state: dict[str, Any], keep: int
) -> Path:
    """Writes `folder/step-000100`, then deletes all but the last `keep`.

    Args:
        folder: Where checkpoints lie.
        step: Steps done.
        policy: The policy.
        state: Everything else: tensors, numbers and containers of them.
        keep: How many to keep, at least 1.
    """
    target = folder / f"step-{step:06d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    policy.save_pretrained(part)
    torch.save({"step": step, **state}, part / _STATE)
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    for old in sorted(folder.glob("step-*"))[: -max(1, keep)]:
        shutil.rmtree(old)
    return target


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def read_checkpoint(
    path: Path, policy: StoredPolicy, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Loads the policy's weights in place and returns the state.

    Args:
        path: Of the checkpoint.
        policy: The policy; as it was, where the checkpoint is refused.
        provenance: What the result of the run hangs on (`cacovid.train.provenance`); compared with
            the entry of that name in the state. Earlier releases kept steps, seed and stages only.

    Raises:
        InvalidInputError: if the checkpoint is of another policy or run, naming what differs, or
            is damaged.
    """
    stored = load_policy(path)
    state = _read_state(path)
    began = state.get("provenance") or {
        "training.steps": state["steps"],
        "training.seed": state["seed"],
        "stages": state.get("stages", [state["steps"]]),
    }
    changed = differences(
        {"policy.type": stored.policy_type, **_of_config(stored), **began},
        {"policy.type": policy.policy_type, **_of_config(policy), **provenance},
        shared=True,
    )
    if changed:
        raise InvalidInputError(
            f"{path} is of another run: {changed}. Use the configuration that the run "
            f"began with, or another output folder"
        )
    policy.load_state_dict(stored.state_dict())
    return state


def _of_config(policy: StoredPolicy) -> dict[str, Any]:
    return {f"policy.{name}": value for name, value in policy.config.to_dict().items()}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path / _STATE, weights_only=True, map_location="cpu")
    except Exception as error:  # of bytes that are no pickle, whatever the unpickler comes upon
        raise _damaged(path, type(error).__name__) from error
    if not isinstance(state, dict) or not state.keys() >= _ENTRIES:
        raise _damaged(path, f"expected a dictionary of {', '.join(sorted(_ENTRIES))}")
    return state


def _damaged(path: Path, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path / _STATE} cannot be read as the state of a run ({reason}); delete {path} to go on "
        f"from the checkpoint before it"
    )
