"""The C++ and CUDA sources use what PyTorch 2.10's stable headers have, and nothing newer.

A build against newer headers does not tell: names that came later are there whatever version is
targeted.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
)

#: Names of the headers that compiled against 2.10 and 2.11. Add one after compiling against these.
KNOWN = {
    "STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL", "STD_CUDA_CHECK",
    "STD_CUDA_KERNEL_LAUNCH_CHECK", "TORCH_ABI_VERSION", "TORCH_BOX", "TORCH_ERROR_CODE_CHECK",
}  # fmt: skip
_MACRO = re.compile(r"\b(?:STABLE_TORCH|STD_TORCH|STD_CUDA|TORCH)_[A-Z_]+\b")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_macros_are_of_the_oldest_headers(path: Path) -> None:
    newer = set(_MACRO.findall(path.read_text())) - KNOWN
    assert not newer, f"{path.name} uses {newer}; compile against PyTorch 2.10 first"


def test_some_are_used() -> None:
    used = {name for path in SOURCES for name in _MACRO.findall(path.read_text())}
    assert used == KNOWN
