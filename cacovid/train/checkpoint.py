"""Checkpoints of a training run: a folder each, there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from cacovid.errors import InvalidInputError
from cacovid.policies import StoredPolicy, load_policy

_STATE = "trainer.pt"


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


def read_checkpoint(path: Path, policy: StoredPolicy) -> dict[str, Any]:
    """Loads the policy's weights in place and returns the state.

    Raises:
        InvalidInputError: if the checkpoint is of another policy or is damaged.
    """
    stored = load_policy(path)
    if type(stored) is not type(policy) or stored.config != policy.config:
        raise InvalidInputError(
            f"{path} holds a policy {stored.config}; the run trains {policy.config}. Use another "
            f"output folder, or the configuration that the run began with"
        )
    policy.load_state_dict(stored.state_dict())
    try:
        return torch.load(path / _STATE, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError) as error:
        raise InvalidInputError(
            f"{path / _STATE} cannot be read ({error}); delete {path} to go on from the "
            f"checkpoint before it"
        ) from error
