"""Runs the cases: results are compared first, then times are taken in turns."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cacovid.benchmark.cases import Case, Provider, Setting
from cacovid.benchmark.ceilings import Ceilings
from cacovid.benchmark.timing import (
    Sampler,
    Times,
    graph_sampler,
    host_clock,
    host_sampler,
    interleaved,
    synchronise,
)

#: Sets of inputs that take turns, so that none is found in the cache. On the CPU a large one is not
#: found there anyway, and its memory is dear.
ROTATED, LARGE = 4, 2**26


@dataclass(frozen=True)
class Row:
    """One way of one case.

    Args:
        case: Which.
        provider: Which way.
        times: What was measured.
        ratio: Its median, as a multiple of ours.
        floor: Seconds below which no way can be on this device.
        copy_share: Least traffic over time, as a share of this run's own copy bandwidth.
        peak: Bytes allocated at the most during one run; 0 on the CPU.
        calls: Operators that PyTorch was asked for in one run.
        waits: How often one run read a value back to the host.
    """

    case: Case
    provider: Provider
    times: Times
    ratio: float
    floor: float
    copy_share: float
    peak: int
    calls: int
    waits: int


def run_case(case: Case, setting: Setting, ceilings: Ceilings, seconds: float) -> list[Row]:
    """Measures one case.

    Args:
        case: Which.
        setting: Where.
        ceilings: The device's limits.
        seconds: About how long each case may be timed.

    Raises:
        WrongResult: if the ways disagree.
        torch.OutOfMemoryError: if the memory does not suffice.
    """
    device = setting.device
    try:
        alone = device.type == "cpu" and case.tokens * case.hidden * setting.dtype.itemsize > LARGE
        sets = [case.inputs(10 * i) for i in range(1 if alone else ROTATED)]
        with torch.no_grad() if case.op != "cpo_loss" else torch.enable_grad():
            return _measured(case, sets, device, ceilings, seconds)
    finally:
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measured(
    case: Case, sets: list[Any], device: torch.device, ceilings: Ceilings, seconds: float
) -> list[Row]:
    results, peaks, counts = {}, {}, {}
    for provider in case.providers:
        name = provider.name
        results[name], peaks[name], counts[name] = _once(provider, sets[0], device)
    if case.check is not None:
        case.check(results, sets[0])
    del results
    samplers: dict[str, tuple[str, Sampler]] = {}
    for provider in case.providers:
        samplers[provider.name] = _sampler(provider, sets, device)
    times = interleaved(samplers, seconds)
    ours = next(times[p.name].median for p in case.providers if p.role == "ours")
    return [
        Row(
            case=case,
            provider=provider,
            times=times[provider.name],
            ratio=times[provider.name].median / ours,
            floor=ceilings.floor(case.least_bytes, case.flops),
            copy_share=case.least_bytes / times[provider.name].median / ceilings.copy,
            peak=peaks[provider.name],
            calls=counts[provider.name].calls,
            waits=counts[provider.name].waits,
        )
        for provider in case.providers
    ]


def _sampler(provider: Provider, sets: list[Any], device: torch.device) -> tuple[str, Sampler]:
    """The clock that suits the way, and what reads it."""
    if provider.captures and device.type == "cuda":
        try:
            return "device", graph_sampler(provider.run, sets)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # what waits for the device cannot be captured; the clock says so
            torch.cuda.synchronize(device)
            # A capture that fails at its end leaves its own stream current.
            torch.cuda.set_stream(torch.cuda.default_stream(device))
    return host_clock(device)[0], host_sampler(provider.run, sets, device)


def _once(provider: Provider, inputs: Any, device: torch.device) -> tuple[Any, int, _Counter]:
    """The result of a run, its peak of memory, and its operators."""
    counter = _Counter()
    if provider.role == "compiled":  # generated kernels are not seen by the counter
        result = provider.run(inputs)
    else:
        with counter:
            result = provider.run(inputs)
    if device.type != "cuda":
        return result, 0, counter
    del result
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = provider.run(inputs)
    synchronise(device)
    return result, torch.cuda.max_memory_allocated(device) - before, counter


class _Counter(TorchDispatchMode):
    """Counts the operators that do work, and those that bring a value to the host."""

    _VIEWS = frozenset({"view", "expand", "slice", "select", "t", "transpose", "unsqueeze"})

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.waits += name in ("_local_scalar_dense", "nonzero", "is_nonzero")
        self.calls += name not in self._VIEWS
        return func(*args, **(kwargs or {}))
