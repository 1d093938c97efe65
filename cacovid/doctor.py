"""What is installed, what was compiled, which backends serve, and why something is missing.

`report` gathers it as plain data and `render` writes it for people; `cacovid doctor` prints either.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

from cacovid import _extension, settings
from cacovid._version import __version__
from cacovid.errors import InvalidInputError

#: Distributions that are looked at: the module to try to import (None: its metadata is enough;
#: importing it takes seconds or has effects), and the extra of `cacovid` that brings it.
PACKAGES: dict[str, tuple[str | None, str]] = {
    "torch": ("torch", ""),
    "numpy": ("numpy", ""),
    "safetensors": ("safetensors", ""),
    "huggingface_hub": (None, ""),
    "transformers": (None, "models"),
    "accelerate": (None, "models"),
    "decord": ("decord", "video"),
    "av": ("av", "video"),
    "torchcodec": ("torchcodec", ""),
    "triton": ("triton", "triton"),
    "tyro": (None, "cli"),
    "rich": (None, "cli"),
    "matplotlib": (None, "viz"),
    "pillow": (None, "viz"),
    "vllm": (None, ""),
    "sglang": (None, ""),
    "lmms_eval": (None, ""),
}

_ENGINES = frozenset({"vllm", "sglang", "lmms_eval"})


def report() -> dict[str, Any]:
    """The state of this installation, ready for `json.dumps`.

    Returns:
        `cacovid` (version, folder, embedded model), `python`, `packages` (by name: `version` or
        None, `problem` or None), `compiled` (by library: `loaded`, `reason`), `build` (how the
        compiled part was built, or None), `backends` (by name: `available`, `reason`), `machine`
        (CPU features and GPUs, asked of the driver and of torch) and `environment` (by variable:
        the value, whether it is set, its problem).

    >>> report()["backends"]["reference"]["available"]
    True
    """
    from cacovid import backends

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reasons are part of the report
        statuses = _extension.statuses()
        available = backends.available()
    host = _extension.host()
    folder = Path(__file__).resolve().parent
    return {
        "cacovid": {
            "version": __version__,
            "folder": str(folder),
            "embedded_model": (folder / "assets" / "tiny" / "config.json").is_file(),
        },
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": {name: _package(name, module) for name, (module, _) in PACKAGES.items()},
        "compiled": {s.name: {"loaded": s.loaded, "reason": s.reason} for s in statuses},
        "build": host.build_info() if host else None,
        "backends": {
            name: {"available": state.available, "reason": state.reason}
            for name, state in available.items()
        },
        "machine": _machine(),
        "environment": {name: _variable(name) for name in settings.VARIABLES},
    }


def render(report: dict[str, Any]) -> str:
    """The report as text, one fact a line, with what to do about what is missing."""
    own, python, machine = report["cacovid"], report["python"], report["machine"]
    embedded = "present" if own["embedded_model"] else "missing from this installation"
    lines = [
        f"cacovid {own['version']} in {own['folder']}",
        f"  Python {python['version']} ({python['executable']})",
        f"  embedded model: {embedded}",
        "",
        "Machine",
        f"  {machine['system']}, {machine['threads']} CPU threads"
        + (f" ({', '.join(machine['cpu_features'])})" if machine["cpu_features"] else ""),
        *(f"  GPU: {_gpu(gpu)}" for gpu in machine["gpus"]),
    ]
    if not machine["gpus"]:
        lines.append(f"  no GPU: {machine['gpu_problem']}")
    lines += ["", "Backends"]
    lines += [_state(name, s["available"], s["reason"]) for name, s in report["backends"].items()]
    lines += ["", "Compiled part"]
    lines += [_state(name, s["loaded"], s["reason"]) for name, s in report["compiled"].items()]
    if report["build"]:
        lines.append(f"  built {_build(report['build'])}")
    lines += ["", "Packages"]
    for name, package in report["packages"].items():
        lines.append(_package_line(name, package))
    lines += ["", "Environment"]
    for name, variable in report["environment"].items():
        note = "set" if variable["set"] else "default"
        problem = f"  PROBLEM: {variable['problem']}" if variable["problem"] else ""
        lines.append(f"  {name}={variable['value']} ({note}){problem}")
    return "\n".join(lines)


def _package(name: str, module: str | None) -> dict[str, str | None]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return {"version": None, "problem": None}
    problem = None
    if module is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # a broken native library raises whatever it likes
            first = str(error).strip().splitlines() or [""]
            problem = f"cannot be imported: {type(error).__name__}: {first[0]}"
    return {"version": version, "problem": problem}


def _machine() -> dict[str, Any]:
    import torch

    host = _extension.host()
    gpus: list[dict[str, Any]] = []
    driver: int | None = None
    if host is not None:
        found = host.gpu_capabilities()
        gpus, driver, problem = found["devices"], found["driver"], found["problem"]
    else:
        problem = "the driver was not asked, as cacovid._host is missing"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "cpu_features": host.cpu_features() if host is not None else [],
        "cuda_driver": driver,
        "gpus": [{**gpu, "capability": list(gpu["capability"])} for gpu in gpus],
        "gpu_problem": problem,
        "torch_cuda": torch.version.cuda,
        "torch_sees_gpu": torch.cuda.is_available(),
    }


def _variable(name: str) -> dict[str, Any]:
    try:
        value, problem = settings.get(name), None
    except InvalidInputError as error:
        value, problem = settings.raw(name), str(error)
    return {"value": value, "set": settings.is_set(name), "problem": problem}


def _state(name: str, good: bool, reason: str) -> str:
    return f"  {name:<10} {'yes' if good else 'no '}" + (f"  {reason}" if reason else "")


def _gpu(gpu: dict[str, Any]) -> str:
    major, minor = gpu["capability"]
    return (
        f"{gpu['name']}, compute capability {major}.{minor}, {gpu['multiprocessors']} "
        f"multiprocessors, {gpu['bytes'] / 2**30:.0f} GiB"
    )


def _build(build: dict[str, Any]) -> str:
    if not build["torch"]:
        return f"by {build['compiler']}, without torch at hand: no tensor ops"
    cuda = (
        f"nvcc {build['nvcc']} for {build['cuda_architectures']}"
        if build["cuda_ops"]
        else f"no CUDA (CACOVID_CUDA={build['cuda_option']})"
    )
    return f"by {build['compiler']} against torch {build['torch']}, {cuda}"


def _package_line(name: str, package: dict[str, str | None]) -> str:
    extra = PACKAGES[name][1]
    if package["version"] is None:
        note = "not installed"
        if extra:
            note += f"; pip install 'cacovid[{extra}]'"
        elif name in _ENGINES:
            note += " (an engine; needed only to run inside it)"
        return f"  {name:<16} -         {note}"
    problem = f"  PROBLEM: {package['problem']}" if package["problem"] else ""
    return f"  {name:<16} {package['version']}{problem}"
