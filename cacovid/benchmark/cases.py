"""What a benchmark is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

#: `published`: the procedure as it was published, step by step; `eager`: plain PyTorch without a
#: wait; `compiled`: the same by torch.compile; `bare`: the matrix product or the copy that cannot
#: be left out; `ours`: `cacovid.ops`.
Role: TypeAlias = Literal["published", "eager", "compiled", "bare", "ours"]


@dataclass(frozen=True)
class Provider:
    """One way of doing the work.

    Args:
        name: For tables; unique in its case.
        role: What it stands for.
        run: The work on one set of inputs.
        captures: Whether a CUDA graph can hold it; else it is measured by the host's clock.
    """

    name: str
    role: Role
    run: Callable[[Any], Any]
    captures: bool = True


@dataclass(frozen=True)
class Case:
    """An op at one size.

    Args:
        op: What is measured.
        tokens: `N`.
        hidden: `D`; 0 where the op reads no embeddings.
        note: Further sizes, for tables.
        inputs: Makes one set of random inputs from a seed.
        providers: The ways.
        least_bytes: What any way has to read and write.
        flops: What any way has to compute by matrix products.
        check: Raises if results (by provider) are wrong; no speed without it.
    """

    op: str
    tokens: int
    hidden: int
    note: str
    inputs: Callable[[int], Any]
    providers: tuple[Provider, ...]
    least_bytes: int
    flops: int = 0
    check: Callable[[dict[str, Any], Any], None] | None = None


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share.

    Args:
        device: Where.
        dtype: Of the embeddings.
        compiled: Whether torch.compile is among the ways.
    """

    device: torch.device
    dtype: torch.dtype
    compiled: bool = True

    def compile(self, name: str, function: Callable[..., Any]) -> tuple[Provider, ...]:
        """`function(*inputs)` by torch.compile, or nothing where that is not wanted."""
        if not self.compiled:
            return ()
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        return (Provider(name, "compiled", lambda inputs: compiled(*inputs)),)

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def randn(self, *shape: int, seed: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers; float32 unless said otherwise."""
        drawn = torch.randn(*shape, generator=self.generator(seed), device=self.device)
        return drawn if dtype is None else drawn.to(dtype)


class WrongResult(AssertionError):
    """Two ways do not agree: nothing is timed."""


def agree(results: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises unless the named results, tensors or tuples of them, are equal bit for bit.

    Raises:
        WrongResult: naming the two.
    """
    first = _tensors(results[names[0]])
    for name in names[1:]:
        other = _tensors(results[name])
        if len(first) != len(other) or not all(map(torch.equal, first, other)):
            raise WrongResult(f"{name} and {names[0]} differ; nothing was timed")


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)
