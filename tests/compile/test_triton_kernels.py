"""Every Triton kernel compiles for the devices that are promised, without a GPU.

All of it takes many minutes, so the compiler's reports are kept in `triton_reports.jsonl`, each
under a hash of what was compiled. `make test` looks whether there is one for each launch of today's
kernels and configurations, holds them to the limits, and compiles what stands for the rest. After a
change of a kernel, of a configuration, or of Triton's version in `constraints.txt`, this compiles
what is new and writes the file:

    make test PYTEST_ARGS='-m exhaustive tests/compile'
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path(__file__).with_name("triton_reports.jsonl")
HOW = "Run `make test PYTEST_ARGS='-m exhaustive tests/compile'` and commit the file."
ARCHITECTURES = (80, 90, 100)
#: Shared memory that a block may have, in bytes.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def _gate(what: str, architecture: int, *options: str) -> list[dict[str, Any]]:
    # The interpreter is chosen for a whole process, see tests/conftest.py.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compile.triton_gate", what]
    done = subprocess.run(
        [*command, "--architecture", str(architecture), *options],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _recorded(architecture: int) -> dict[str, dict[str, Any]]:
    reports = (report for report in _read(RECORDS) if report["architecture"] == architecture)
    return {report["key"]: report for report in reports}


def _pinned() -> str:
    found = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def _check(report: dict[str, Any]) -> None:
    architecture = report["architecture"]
    assert report["shared"] <= SHARED_LIMITS[architecture], report
    # The configurations of the tests are for few steps in the interpreter; they have to run.
    if report["op"] == "tests":
        return
    assert report["spilled"] == 0, report
    # The tensor cores: of each generation's own kind where a kernel reads the video.
    if report["kernel"] in ("_score_fwd_kernel", "_score_project_kernel", "_score_dw_kernel"):
        assert report[{80: "mma", 90: "wgmma", 100: "tcgen05"}[architecture]], report
    if report["kernel"] in ("_score_fwd_kernel", "_score_project_kernel"):
        assert report["descriptors"] == (architecture >= 90), report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_launch_has_a_report_within_the_limits(architecture: int) -> None:
    recorded = _recorded(architecture)
    wanted = {head["key"]: head["label"] for head in _gate("list", architecture)}
    missing = [label for key, label in wanted.items() if key not in recorded]
    assert not missing and set(recorded) == set(wanted), (
        f"{RECORDS.name} has no report of {missing[:5]} ({len(missing)} in all), and "
        f"{len(set(recorded) - set(wanted))} that nothing launches. {HOW}"
    )
    assert len(wanted) > 30
    for report in recorded.values():
        _check(report)


def test_reports_are_of_the_pinned_triton() -> None:
    versions = {report["triton"] for report in _read(RECORDS)}
    assert versions == {_pinned()}, f"{RECORDS.name} is of Triton {versions}. {HOW}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_representative_kernels(
    architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    reports = _gate("few", architecture)
    dtypes = {"bfloat16", "float16", "float32"} if architecture == 90 else {"bfloat16"}
    for kernel in ("_score_fwd_kernel", "_score_project_kernel", "_score_dw_kernel"):
        assert {r["dtype"] for r in reports if r["kernel"] == kernel} == dtypes
    assert {"_score_finish_kernel", "_score_frame_kernel"} <= {r["kernel"] for r in reports}
    recorded = _recorded(architecture)
    for report in reports:
        _check(report)
        # What the file says is what this compiler says.
        if report["triton"] == recorded[report["key"]]["triton"]:
            assert report == recorded[report["key"]]


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_dtype_and_configuration(
    architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiles what has no report; writes the file where Triton's version is the pinned one."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    path = RECORDS if version("triton") == _pinned() else tmp_path / RECORDS.name
    _gate("record", architecture, "--file", str(path))
    for report in _read(path):
        if report["architecture"] == architecture:
            _check(report)
