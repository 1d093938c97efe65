"""Every CUDA source compiles for the devices that are promised, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90a", "100")
#: Held to an error budget, as its result is no integer; those of all others hang on every rounding.
WITHIN_A_BUDGET = {"cpo_loss.cu"}
WITHOUT_ARITHMETIC = {"gather.cu"}


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


NVCC = _nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor in CUDA_HOME")


@dataclass(frozen=True)
class Built:
    """What a compilation left.

    Args:
        report: Of ptxas.
        code: The PTX by architecture.
    """

    report: str
    code: dict[str, str]


@cache
def _built(source: Path) -> Built:
    """A source for all architectures, in one slow call of nvcc that all tests share."""
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [NVCC, "-std=c++20", "-O3", "--fmad=false", "-c", str(source)]
        command += ["-o", f"{folder}/{source.stem}.o", "--keep", "--keep-dir", folder]
        command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xptxas=-v"]
        command += ["-isystem", str(Path(torch.__file__).parent / "include")]
        command += [f"-I{ROOT / 'csrc' / 'include'}", "-Xcompiler=-fPIC"]
        for sm in ARCHITECTURES:
            command += ["-gencode", f"arch=compute_{sm},code=sm_{sm}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        report = done.stdout + done.stderr
        assert done.returncode == 0, report
        kept = {sm: Path(folder, f"{source.stem}.compute_{sm}.ptx") for sm in ARCHITECTURES}
        return Built(report, {sm: path.read_text() for sm, path in kept.items()})


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(source: Path) -> None:
    report = _built(source).report
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert kernels, report
    assert set(kernels) == {("0", "0")}, report
    for sm in ARCHITECTURES:
        assert f"for 'sm_{sm}'" in report


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_fused_multiply_add(source: Path) -> None:
    for sm, code in _built(source).code.items():
        assert f".target sm_{sm}" in code
        if source.name not in WITHOUT_ARITHMETIC:
            assert re.search(r"\bmul(\.rn)?\.f(32|64)\b", code)
        # CUDA's own exp and log of float64 fuse, so this is also what shows that one is found.
        fused = re.search(r"\bfma\.rn(\.ftz)?\.f(32|64)\b", code)
        assert bool(fused) == (source.name in WITHIN_A_BUDGET), source.name


def test_the_build_lists_every_cuda_source() -> None:
    listed = (ROOT / "CMakeLists.txt").read_text()
    assert SOURCES
    for source in SOURCES:
        assert f"csrc/cuda/{source.name}" in listed
