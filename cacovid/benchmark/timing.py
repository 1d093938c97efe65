"""Times of several ways of the same work, taken in turns.

On CUDA what a graph can hold is timed by the device's clock: the time of a graph of 50 runs less
that of a graph of 25, by 25, so that the launch of the graph does not count; inputs rotate, so that
no run finds its own in the cache. Runs of a millisecond have shorter graphs, and beside one of five
milliseconds the launch is nothing, so that a single one is replayed. Everything else is timed by
the host's clock, with the device waited for; on the CPU with a single thread by the processor's
time, which other work on the machine does not count to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Runs of the longer graph at most, and about how long its replay may last, in seconds.
LONG, LONGEST_REPLAY = 50, 20e-3

#: Runs that take longer, in seconds, are replayed one at a time: the launch of a graph does not
#: count beside them, and two graphs of many would take minutes.
LONG_RUN = 5e-3

#: A sample by the host's clock lasts at least this long, in seconds.
LEAST_SAMPLE = 2e-3


@dataclass(frozen=True)
class Times:
    """What was measured of one way.

    Args:
        median: Seconds of one run.
        p20: Below it lie a fifth of the samples.
        p80: Above it lie a fifth of the samples.
        samples: How many.
        clock: `"device"`, `"host"` or `"processor"`.
    """

    median: float
    p20: float
    p80: float
    samples: int
    clock: str


#: Takes one sample: seconds of one run.
Sampler = Callable[[], float]


def interleaved(
    samplers: dict[str, tuple[str, Sampler]], seconds: float, most: int = 50
) -> dict[str, Times]:
    """Samples of every way in turns, A B A B.

    Args:
        samplers: By name: the clock's name, and what takes a sample.
        seconds: About how long this may last.
        most: Rounds at most. There are at least 5, or 1 where one round takes all the time.
    """
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    alone = {clock for clock, _ in samplers.values()} == {"processor"}
    now = time.process_time if alone else time.perf_counter
    begin = now()
    for done in range(1, most + 1):
        for name, (_, sample) in samplers.items():
            taken[name].append(sample())
        passed = now() - begin
        if passed >= seconds and (done >= 5 or passed / done > seconds):
            break
    return {name: _summary(values, samplers[name][0]) for name, values in taken.items()}


def host_clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """The clock of what no graph holds, and its name."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "processor", time.process_time
    return "host", time.perf_counter


def host_sampler(run: Callable[[Any], Any], inputs: Sequence[Any], device: torch.device) -> Sampler:
    """Samples by `host_clock`; runs are repeated until a sample is long enough."""
    turn, (_, now) = 0, host_clock(device)

    def runs(count: int) -> float:
        nonlocal turn
        synchronise(device)
        begin = now()
        for _ in range(count):
            run(inputs[turn % len(inputs)])
            turn += 1
        synchronise(device)
        return (now() - begin) / count

    first = runs(1)
    count = 1 if first > LEAST_SAMPLE else int(LEAST_SAMPLE / max(runs(1), 1e-7)) + 1
    spare = [first] if count == 1 else []  # of a run that takes long none is for nothing
    return lambda: spare.pop() if spare else runs(count)


def graph_sampler(run: Callable[[Any], Any], inputs: Sequence[Any]) -> Sampler:
    """Samples by the device's clock, from the difference of two CUDA graphs.

    How many runs they hold is found from the time of one, see `graph_lengths`.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for one in inputs:
            run(one)
    torch.cuda.current_stream().wait_stream(stream)

    def graph_of(count: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for number in range(count):
                run(inputs[number % len(inputs)])
        graph.replay()
        return graph

    single = graph_of(1)
    short, long = graph_lengths(_replayed(single))
    if not short:
        return lambda: _replayed(single)
    graphs = [graph_of(count) for count in (short, long)]

    def sample() -> float:
        first, second = map(_replayed, graphs)
        return (second - first) / (long - short)

    return sample


def graph_lengths(seconds: float) -> tuple[int, int]:
    """Runs that the shorter and the longer of two graphs hold.

    Args:
        seconds: Of one run.

    Returns:
        The one half of the other; (0, 1): a single run is replayed.

    >>> graph_lengths(20e-6), graph_lengths(2e-3), graph_lengths(0.85)
    ((25, 50), (5, 10), (0, 1))
    """
    if seconds > LONG_RUN:
        return 0, 1
    short = min(LONG, int(LONGEST_REPLAY / max(seconds, 1e-9))) // 2
    return short, 2 * short


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds of one replay, by the device's clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def synchronise(device: torch.device) -> None:
    """Waits for a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(values: list[float], clock: str) -> Times:
    ordered = sorted(values)
    return Times(
        median=_quantile(ordered, 0.5),
        p20=_quantile(ordered, 0.2),
        p80=_quantile(ordered, 0.8),
        samples=len(ordered),
        clock=clock,
    )


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
