"""The report of `cacovid doctor`."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

import cacovid
from cacovid import _extension, doctor


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, object]]:
    return doctor.report()


def test_report_is_plain_data_and_true(report: dict[str, dict]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["cacovid"]["version"] == cacovid.__version__
    assert report["packages"]["torch"] == {"version": torch.__version__, "problem": None}
    assert report["backends"]["reference"] == {"available": True, "reason": ""}
    assert report["backends"]["cpu"]["available"] == report["compiled"]["_C"]["loaded"]
    assert report["machine"]["torch_sees_gpu"] == torch.cuda.is_available()


def test_everything_that_is_missing_has_a_reason(report: dict[str, dict]) -> None:
    for state in report["compiled"].values():
        assert state["loaded"] != bool(state["reason"])
    for state in report["backends"].values():
        assert state["available"] != bool(state["reason"])
    assert report["machine"]["gpus"] or report["machine"]["gpu_problem"]


def test_rendered_report_names_what_to_install() -> None:
    report = doctor.report()
    report["packages"]["av"] = {"version": None, "problem": None}
    text = doctor.render(report)
    assert "pip install 'cacovid[video]'" in text
    assert f"cacovid {cacovid.__version__}" in text
    for name in report["packages"]:
        assert name in text


def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is how Python itself marks a module that must not be imported.
    monkeypatch.setitem(sys.modules, "numpy", None)
    found = doctor._package("numpy", "numpy")
    assert found["version"] and "cannot be imported" in str(found["problem"])


def test_a_wrong_setting_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACOVID_BACKEND", "fastest")
    variable = doctor.report()["environment"]["CACOVID_BACKEND"]
    assert variable["value"] == "fastest" and "expected one of" in variable["problem"]


def test_a_gpu_is_described(report: dict[str, dict]) -> None:
    gpu = {"name": "X", "capability": [9, 0], "multiprocessors": 132, "bytes": 2**37}
    changed = {**report, "machine": {**report["machine"], "gpus": [gpu]}}
    assert "GPU: X, compute capability 9.0, 132 multiprocessors, 128 GiB" in doctor.render(changed)


def test_host_module_tells_how_it_was_built() -> None:
    host = _extension.host()
    if host is None:
        pytest.skip("cacovid._host is not built here")
    assert isinstance(host, types.ModuleType)
    info = host.build_info()
    assert info["version"] == cacovid.__version__
    assert info["cpu_ops"] == bool(info["torch"])
    assert info["cuda_ops"] == bool(info["nvcc"])
    assert all(isinstance(name, str) for name in host.cpu_features())
    gpus = host.gpu_capabilities()
    assert bool(gpus["devices"]) != bool(gpus["problem"])
