"""Which implementation of an op serves: by device and availability, or as the caller says.

| backend | what it is | devices |
|---|---|---|
| `triton` | kernels in `kernels/triton` | CUDA |
| `cuda` | CUDA C++ kernels, library `_C_cuda` | CUDA |
| `cpu` | C++, library `_C` | CPU |
| `reference` | plain PyTorch, `cacovid.reference` | any |

The choice is automatic unless an op's argument `backend=` or the environment variable
`CACOVID_BACKEND` names one. The argument must be met exactly: where that backend is missing, or
does not run the op on the tensors' device, the call is an error. The environment variable is for
whole programs: an op that has no form for the named backend runs its reference, and a named
backend that is missing is an error all the same. Discrete results do not depend on the choice.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from cacovid import _extension, settings
from cacovid.errors import InvalidInputError

#: Every backend, the preferred one first.
NAMES = ("triton", "cuda", "cpu", "reference")

_DEVICES = {"triton": "cuda", "cuda": "cuda", "cpu": "cpu"}
_LIBRARIES = {"cuda": "_C_cuda", "cpu": "_C"}

_states: dict[str, Availability] = {}
_warned: set[str] = set()


@dataclass(frozen=True)
class Availability:
    """Whether a backend can serve on this machine.

    Args:
        name: The backend.
        available: Whether its ops can be called.
        reason: Why not; empty where it can.
    """

    name: str
    available: bool
    reason: str = ""


def available() -> dict[str, Availability]:
    """Every backend with the reason where it is missing, for `cacovid doctor`.

    >>> available()["reference"].available
    True
    """
    return {name: _availability(name) for name in NAMES}


def choose(op: str, implemented: Sequence[str], device: str, backend: str | None = None) -> str:
    """The backend that runs `op` on tensors of `device`; `"meta"` for shapes without values.

    Args:
        op: The op's name, for messages.
        implemented: Backends that have the op, besides the reference.
        device: Type of the tensors' device, such as `"cuda"`.
        backend: The caller's wish; None leaves it to `CACOVID_BACKEND`, then to availability.

    Raises:
        InvalidInputError: if the named backend does not exist, does not have the op, does not run
            on the device, or is missing here.
    """
    if backend is not None and backend not in NAMES:
        raise InvalidInputError(f"backend is {backend!r}; expected one of {', '.join(NAMES)}")
    named = backend
    if named is None and device == "meta" and implemented:
        return "meta"
    if named is None:
        setting = settings.backend()
        if setting != "auto":
            named = setting if setting in implemented else "reference"
    if named == "reference":
        return named
    if named is not None:
        _check_named(op, implemented, device, named)
        return named
    for name in NAMES:
        if name in implemented and _DEVICES[name] == device and _availability(name).available:
            return name
    _warn_of_fallback(implemented, device)
    return "reference"


def _check_named(op: str, implemented: Sequence[str], device: str, name: str) -> None:
    if name not in implemented:
        raise InvalidInputError(
            f"{op} has no {name} form; it has {', '.join((*implemented, 'reference'))}"
        )
    if _DEVICES[name] != device:
        raise InvalidInputError(
            f"backend {name!r} of {op} needs tensors on {_DEVICES[name]}, but they are on "
            f"{device}; move them, or leave the backend open"
        )
    state = _availability(name)
    if not state.available:
        raise InvalidInputError(f"backend {name!r} of {op} is not available: {state.reason}")


def _availability(name: str) -> Availability:
    # Probed once: later calls are a look-up, which torch.compile can follow.
    if name not in _states:
        _states[name] = _probe(name)
    return _states[name]


def _probe(name: str) -> Availability:
    if name == "reference":
        return Availability(name, True)
    if name == "triton":
        return _probe_triton()
    library = _LIBRARIES[name]
    if _extension.is_loaded(library):
        return Availability(name, True)
    (reason,) = (s.reason for s in _extension.statuses() if s.name == library)
    return Availability(name, False, reason)


def _probe_triton() -> Availability:
    import torch

    # Looked for, not imported: that takes most of a second, and is done by the first call.
    if importlib.util.find_spec("triton") is None:
        return Availability(
            "triton", False, "triton is not installed: pip install 'cacovid[triton]'"
        )
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
        return Availability("triton", False, reason)
    return Availability("triton", True)


def _warn_of_fallback(implemented: Sequence[str], device: str) -> None:
    # The CPU library gives its own warning when it is loaded.
    missing = [name for name in implemented if _DEVICES[name] == device != "cpu"]
    if missing and device not in _warned:
        _warned.add(device)
        reasons = "; ".join(f"{name}: {_availability(name).reason}" for name in missing)
        warnings.warn(
            f"No kernels of cacovid for {device} tensors are in use, so the slower reference in "
            f"plain PyTorch serves (results are the same). {reasons}",
            RuntimeWarning,
            stacklevel=4,
        )
