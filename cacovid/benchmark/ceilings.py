"""What the device itself can do, measured before anything else in every run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cacovid.benchmark.timing import Sampler, graph_sampler, host_clock, host_sampler, interleaved


@dataclass(frozen=True)
class Ceilings:
    """Limits of the device.

    Args:
        copy: Bytes a second of a copy, read and written both counted.
        read: Bytes a second of reading alone.
        matmul: Operations a second of a large matrix product in the run's dtype.
        empty: Seconds of the smallest possible graph node; 0 on the CPU.
    """

    copy: float
    read: float
    matmul: float
    empty: float

    def floor(self, least_bytes: int, flops: int) -> float:
        """Seconds below which no way can be: the larger of traffic and arithmetic."""
        return max(least_bytes / self.copy, flops / self.matmul)


def measure(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> Ceilings:
    """Measures them.

    Args:
        device: Which.
        dtype: Of the matrix product.
        seconds: About how long this may last.
    """
    cuda = device.type == "cuda"
    count = 2**30 if cuda else 2**25  # floats: more than the caches hold
    side = 8192 if cuda else 1024
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    small = torch.zeros(1, device=device)

    works = {
        "copy": lambda _: target.copy_(source),
        "read": lambda _: source.sum(),
        "matmul": lambda _: left @ right,
        **({"empty": lambda _: small.zero_()} if cuda else {}),
    }

    def sampler(name: str) -> tuple[str, Sampler]:
        if name == "empty":
            return "device", graph_sampler(works[name], [None])
        return host_clock(device)[0], host_sampler(works[name], [None], device)

    times = interleaved({name: sampler(name) for name in works}, seconds, most=20)
    size = source.numel() * source.element_size()
    return Ceilings(
        copy=2 * size / times["copy"].median,
        read=size / times["read"].median,
        matmul=2 * side**3 / times["matmul"].median,
        empty=times["empty"].median if cuda else 0.0,
    )
