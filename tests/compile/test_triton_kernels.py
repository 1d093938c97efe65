"""Every Triton kernel compiles for the devices that are promised, without a GPU.

`make test` compiles what stands for the rest; all of it, which takes minutes:

    make test PYTEST_ARGS='-m exhaustive'
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
#: Shared memory that a block may have, in bytes.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def _reports(architecture: int, cache: Path, *options: str) -> list[dict[str, Any]]:
    # The interpreter is chosen for a whole process, see tests/conftest.py.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "compile" / "triton_gate.py"),
         "--architecture", str(architecture), *options],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(report: dict[str, Any]) -> None:
    architecture = report["architecture"]
    assert report["spilled"] == 0, report
    assert report["shared"] <= SHARED_LIMITS[architecture], report
    # The tensor cores: of each generation's own kind where a kernel reads the video.
    if report["kernel"] in ("_score_fwd_kernel", "_score_project_kernel", "_score_dw_kernel"):
        assert report[{80: "mma", 90: "wgmma", 100: "tcgen05"}[architecture]], report
    if report["kernel"] in ("_score_fwd_kernel", "_score_project_kernel"):
        assert report["descriptors"] == (architecture >= 90), report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_representative_kernels(architecture: int, tmp_path: Path) -> None:
    reports = _reports(architecture, tmp_path)
    kernels = {report["kernel"] for report in reports}
    assert kernels == {
        "_score_fwd_kernel", "_score_project_kernel", "_score_finish_kernel", "_score_frame_kernel",
        "_score_dw_kernel",
    }  # fmt: skip
    for report in reports:
        _check(report)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_dtype_and_configuration(architecture: int, tmp_path: Path) -> None:
    reports = _reports(architecture, tmp_path, "--every")
    assert len(reports) > 30
    for report in reports:
        _check(report)
