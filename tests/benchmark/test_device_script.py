"""`bench/device.sh` as far as it goes without a GPU: what it would do, and what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "device.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def test_a_dry_run_tells_the_steps_and_what_is_missing(tmp_path):
    done = run("--dry-run", OUT=str(tmp_path))
    assert f"torch {torch.__version__}" in done.stdout
    assert "tests/ops/test_ops_cuda.py tests/session/test_session_cuda.py" in done.stdout
    assert f"figures: {tmp_path}/" in done.stdout and ".csv" in done.stdout
    missing = [line for line in done.stdout.splitlines() if "missing: " in line]
    assert any("CUDA device" in line for line in missing) != torch.cuda.is_available()
    assert done.returncode == (1 if missing else 0)
    assert list(tmp_path.iterdir()) == []  # nothing was done


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_measured(tmp_path):
    done = run(OUT=str(tmp_path))
    assert done.returncode == 1
    assert "nothing was measured: see what is missing above" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_without_torch_is_told(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages
    python.chmod(0o755)
    done = run("--dry-run", PYTHON=str(python))
    assert done.returncode == 1
    assert f"missing: torch for {python}" in done.stdout
    assert "missing: nosuch" in run("--dry-run", PYTHON="nosuch").stdout


def test_wrong_usage():
    done = run("--fast")
    assert done.returncode == 2 and "unknown argument --fast" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == "" and done.returncode == 0
