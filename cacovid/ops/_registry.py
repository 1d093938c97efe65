"""The table of ops, and the one place where schemas of `torch.ops.cacovid.*` are defined.

A native library only binds implementations to these schemas (keys `CPU` and `CUDA`); where it is
missing, the reference that is registered here under `CompositeExplicitAutograd` serves, so the
ops exist with and without the compiled part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload

from cacovid.backends import available, choose
from cacovid.errors import InvalidInputError

_Result = TypeVar("_Result")

_library = torch.library.Library("cacovid", "FRAGMENT")


@dataclass(frozen=True)
class OpSpec:
    """What the table says of one op.

    Args:
        name: Of the public function in `cacovid.ops`, of its reference and of its schema.
        backends: Its forms besides the reference.
        schema: Of `torch.ops.cacovid.<name>`; None for an op that is the reference alone.
    """

    name: str
    backends: tuple[str, ...] = ()
    schema: str | None = None

    def choose(self, device: torch.device, backend: str | None) -> str:
        """The backend for tensors on `device` (see `backends.choose`)."""
        return choose(self.name, self.backends, device.type, backend)


#: Every public op, by name.
TABLE: dict[str, OpSpec] = {}


def reference_only(name: str) -> OpSpec:
    """Enters an op that has no compiled form yet."""
    TABLE[name] = OpSpec(name)
    return TABLE[name]


def define(
    name: str,
    schema: str,
    *,
    backends: tuple[str, ...],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
) -> tuple[OpSpec, OpOverload]:
    """Enters an op with compiled forms.

    Args:
        name: The op's name.
        schema: Arguments and results, e.g. `"(Tensor rows, Tensor keep) -> Tensor"`.
        backends: Its forms besides the reference.
        reference: Plain PyTorch with the schema's signature.
        fake: Makes results of the right shape, dtype and device without computing.

    Returns:
        The table's entry, and the overload to call.
    """
    available()  # loads the compiled part, outside of any torch.compile
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cacovid::{name}", fake, lib=_library)
    TABLE[name] = OpSpec(name, backends, schema)
    overload: OpOverload = getattr(torch.ops.cacovid, name).default
    return TABLE[name], overload


def call(overload: Callable[..., _Result], *arguments: Any) -> _Result:
    """Calls an op, with a native ValueError as the library's own error."""
    if torch.compiler.is_compiling():
        return overload(*arguments)
    try:
        return overload(*arguments)
    except InvalidInputError:
        raise
    except ValueError as error:
        raise InvalidInputError(str(error)) from None
