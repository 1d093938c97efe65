"""Checkpoints of the tiny model's training: written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cacovid.files import written_whole


def save_checkpoint(
    path: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: Any = None,
) -> None:
    """Writes the state to a temporary file, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"step": step}
    state.update({name: module.state_dict() for name, module in modules.items()})
    if optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    with written_whole(path) as part:
        torch.save(state, part)


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimizer: Any = None) -> int:
    """Restores the state and returns the number of steps done; 0 if there is no file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state[name])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
