"""Every CUDA source compiles for the devices that are promised, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


NVCC = _nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor in CUDA_HOME")


def _compile(source: Path, output: Path, *arguments: str) -> str:
    assert NVCC is not None
    command = [NVCC, "-std=c++20", "-O3", "--fmad=false", str(source), "-o", str(output)]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += ["-isystem", str(Path(torch.__file__).parent / "include")]
    command += [f"-I{ROOT / 'csrc' / 'include'}", "-Xcompiler=-fPIC", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    return report


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    arguments = ["-Xptxas=-v"]
    for sm in ARCHITECTURES:
        arguments += ["-gencode", f"arch=compute_{sm},code=sm_{sm}"]
    report = _compile(source, tmp_path / f"{source.stem}.o", "-c", *arguments)
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert kernels, report
    assert set(kernels) == {("0", "0")}, report
    for sm in ARCHITECTURES:
        assert f"sm_{sm}" in report


@needs_nvcc
@pytest.mark.parametrize("name", ["ocss_sample", "bernoulli_sample"])
def test_the_samplers_have_no_fused_multiply_add(name: str, tmp_path: Path) -> None:
    output = tmp_path / f"{name}.ptx"
    _compile(ROOT / "csrc" / "cuda" / f"{name}.cu", output, "-ptx", "-arch=compute_90")
    code = output.read_text()
    assert "mul.rn.f32" in code or "mul.f32" in code
    assert "fma.rn" not in code


def test_the_build_lists_every_cuda_source() -> None:
    listed = (ROOT / "CMakeLists.txt").read_text()
    assert SOURCES
    for source in SOURCES:
        assert f"csrc/cuda/{source.name}" in listed
