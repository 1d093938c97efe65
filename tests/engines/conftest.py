"""Beside a torch for the CPU, torchvision's operators do not load, and it cannot be imported.

The engines' packages import it. The schemas of two operators are enough for that: nothing here
calls them.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

_KEPT = []  # schemas go with the library that defines them


def _import_torchvision() -> None:
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


if any(importlib.util.find_spec(engine) is not None for engine in ("sglang", "vllm")):
    _import_torchvision()
