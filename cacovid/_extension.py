"""Loads the compiled part, once, and remembers why where it cannot.

`_C` holds the CPU ops and `_C_cuda` the CUDA ops, both PyTorch's stable ABI, registered as
`torch.ops.cacovid.*`. `_host` is a pybind11 module with build information. Each may be missing:
the reference then serves, after one warning that says why.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cacovid import settings
from cacovid.errors import InvalidInputError

#: What `torch.ops.cacovid._interface()` of a library that fits these files returns.
INTERFACE = 2

_FOLDER = Path(__file__).resolve().parent
_REBUILD = (
    "Build it with `pip install --no-build-isolation .` in a checkout where torch and a C++ "
    "compiler are installed"
)


@dataclass(frozen=True)
class Status:
    """What became of one library.

    Args:
        name: `_C`, `_C_cuda` or `_host`.
        loaded: Whether it serves.
        reason: Why it does not; empty where it does.
    """

    name: str
    loaded: bool
    reason: str = ""


_lock = threading.Lock()
_loaded: dict[str, Status] = {}
_warned = False


def warn_if_absent() -> None:
    """Warns, once, if the CPU library is not even there. Cheap: asks the file system alone.

    Called on `import cacovid`, which must not spend the time to import torch; what goes wrong
    while loading is found out, and warned of, by `load`.
    """
    if not (_FOLDER / "_C.so").is_file() and not _reference_asked_for():
        _warn(_absent("_C"))


def load() -> Status:
    """Loads `_C`, and `_C_cuda` beside a CUDA torch. Later calls return the first outcome.

    Returns:
        The outcome for `_C`; `statuses` tells of all libraries.
    """
    with _lock:
        if "_C" not in _loaded:
            _loaded["_C"] = _load_cpu()
            _loaded["_C_cuda"] = _load_cuda(_loaded["_C"])
            if not _loaded["_C"].loaded and not _reference_asked_for():
                _warn(_loaded["_C"].reason)
        return _loaded["_C"]


def is_loaded(name: str = "_C") -> bool:
    """Whether `_C` or `_C_cuda` serves; loads them first."""
    load()
    return _loaded[name].loaded


def statuses() -> tuple[Status, ...]:
    """The outcome for `_C`, `_C_cuda` and `_host`; loads them first."""
    load()
    module = host()
    reason = "" if module else f"{_absent('_host')} It is optional: the ops do without it."
    return (_loaded["_C"], _loaded["_C_cuda"], Status("_host", module is not None, reason))


def host() -> ModuleType | None:
    """The pybind11 module `cacovid._host`, or None where there is none for this Python."""
    try:
        return importlib.import_module("cacovid._host")
    except ImportError:
        return None


def _load_cpu() -> Status:
    import torch

    path = _FOLDER / "_C.so"
    if not path.is_file():
        return Status("_C", False, _absent("_C"))
    try:
        torch.ops.load_library(str(path))
        found = torch.ops.cacovid._interface()
    except (OSError, RuntimeError, AttributeError) as error:
        reason = f"cacovid/_C.so cannot be loaded into torch {torch.__version__}: {_cause(error)}"
        return Status("_C", False, f"{reason}. {_REBUILD}.")
    if found != INTERFACE:
        reason = f"cacovid/_C.so is from another build (interface {found}, expected {INTERFACE})"
        return Status("_C", False, f"{reason}. {_REBUILD}.")
    return Status("_C", True)


def _load_cuda(cpu: Status) -> Status:
    import torch

    # Both libraries check their inputs alike and the schemas stand in `_C`: one without the other
    # would give a device-dependent set of ops.
    if not cpu.loaded:
        return Status("_C_cuda", False, "it is loaded after _C only, which is not loaded")
    if torch.version.cuda is None:
        return Status("_C_cuda", False, f"torch {torch.__version__} is built without CUDA")
    path = _FOLDER / "_C_cuda.so"
    if not path.is_file():
        return Status("_C_cuda", False, _absent("_C_cuda"))
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return Status("_C_cuda", False, f"cacovid/_C_cuda.so cannot be loaded: {_cause(error)}")
    return Status("_C_cuda", True)


def _cause(error: BaseException) -> BaseException:
    # torch wraps the message of the dynamic linker, which alone says what is wrong.
    return error.__cause__ or error


def _reference_asked_for() -> bool:
    try:
        return settings.backend() == "reference"
    except InvalidInputError:  # an import does not fail for this; the first op that is called does
        return False


def _absent(name: str) -> str:
    """Why a library's file is not there, as far as the files that are there can tell."""
    if name == "_host":
        return (
            f"no cacovid/_host for this Python in {_FOLDER}: built without pybind11 or the headers "
            f"of Python (python3-dev), or for another Python version."
        )
    module = host()
    built = module.build_info() if module else None
    if built is not None and not built["torch"]:
        why = "torch was not installed when cacovid was built"
    elif name == "_C_cuda" and built is not None and built["cuda_option"] == "0":
        why = "cacovid was built with CACOVID_CUDA=0"
    elif name == "_C_cuda" and built is not None:
        why = "no nvcc was found when cacovid was built"
    else:
        why = "cacovid was not built here, or with CACOVID_SKIP_NATIVE=1"
    return f"{_FOLDER / name}.so is missing: {why}. {_REBUILD}."


def _warn(reason: str) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        f"The compiled part of cacovid is not in use, so the slower reference in plain PyTorch "
        f"serves (results are the same). {reason} CACOVID_BACKEND=reference silences this.",
        RuntimeWarning,
        stacklevel=3,
    )
