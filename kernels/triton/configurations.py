"""Launch configurations: JSON in `kernels/configs`, one file per device, and `default.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

#: Properties of a launch by name.
Config = dict[str, int]


def folder() -> Path:
    """Where the files are: beside the kernels when installed, one folder above in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "configs"
    return installed if installed.is_dir() else here.parent / "configs"


def architecture(device: torch.device) -> str:
    """The key of `default.json` for a device, such as `sm_90`; for a CPU (interpreter) too."""
    if device.type != "cuda":
        return "sm_90"
    major = torch.cuda.get_device_capability(device)[0]
    # The consumer's Blackwell (sm_120) has neither wgmma nor tcgen05, and little shared memory.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def device_file(name: str) -> str:
    """The file for a device's name: `NVIDIA H200` has `nvidia-h200.json`."""
    return "-".join(name.lower().split()) + ".json"


def find(op: str, device: torch.device, dtype: torch.dtype, columns: int, tokens: int) -> Config:
    """The configuration of a launch: the device's own where it is tuned, else the default.

    The first entry that matches serves: of this dtype, for at least as many columns and tokens
    (null: any number).

    Args:
        op: Key such as `score_fwd`.
        device: Where it is to run.
        dtype: Of the video.
        columns: `C`; for `score_fwd` the widths of the blocks that hold them, slots and features.
        tokens: `N`.

    Raises:
        LookupError: if no entry matches, which means that `default.json` is incomplete.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return dict(_find(op, architecture(device), name, str(dtype), columns, tokens))


@lru_cache(maxsize=1024)
def _find(op: str, arch: str, name: str, dtype: str, columns: int, tokens: int) -> Config:
    tuned = read(device_file(name)).get(op, []) if name else []
    dtype = dtype.removeprefix("torch.")
    for entry in (*tuned, *read("default.json")[arch][op]):
        fits = all(
            entry.get(key) is None or value <= entry[key]
            for key, value in (("columns", columns), ("tokens", tokens))
        )
        if dtype in entry["dtypes"] and fits:
            return {k: v for k, v in entry.items() if k not in ("dtypes", "columns", "tokens")}
    raise LookupError(f"kernels/configs/default.json has no {op} for {arch}, {dtype}, {columns}")


@lru_cache(maxsize=16)
def read(name: str) -> dict[str, Any]:
    """A file's content; empty where there is none for a device."""
    path = folder() / name
    if name != "default.json" and not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content
