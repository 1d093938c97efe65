"""`make sanitize` tests what it says it tests: instrumented code, and a sanitizer that reports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cacovid import _extension, settings

KIND = settings.get("CACOVID_SANITIZE")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(KIND == "none", reason="runs under `make sanitize`")

FAULTS = {
    "address": "int f(int n) { int* p = new int[4](); int v = p[n]; delete[] p; return v; }",
    "undefined": "int f(int n) { return 2147483643 + n; }",
}
REPORTS = {
    "address": "AddressSanitizer: heap-buffer-overflow",
    "undefined": "signed integer overflow",
}


def test_the_library_in_use_is_instrumented() -> None:
    assert _extension.is_loaded("_C")
    path = _extension._FOLDER / "_C.so"
    assert path.parent.parent.name == f"sanitize-{KIND}"
    calls = {"address": b"__asan_report_load", "undefined": b"__ubsan_handle_add_overflow"}
    assert calls[KIND] in path.read_bytes()
    mapped = Path("/proc/self/maps").read_text()
    assert str(path) in mapped
    assert {"address": "libasan.so", "undefined": "libubsan.so"}[KIND] in mapped


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")
@pytest.mark.parametrize("fault", [False, True])
def test_a_fault_ends_the_process_and_is_reported(tmp_path: Path, fault: bool) -> None:
    source, library = tmp_path / "fault.cpp", tmp_path / "fault.so"
    source.write_text(f'extern "C" {FAULTS[KIND]}\n')
    flags = [f"-fsanitize={KIND}", "-fno-sanitize-recover=all", "-fPIC", "-shared"]
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(library)], check=True)
    call = f"import ctypes; ctypes.CDLL({str(library)!r}).f({5 if fault else 3})"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is fault, done.stderr
    assert (REPORTS[KIND] in done.stderr) is fault, done.stderr
