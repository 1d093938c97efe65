"""Seconds per stage; an accelerator is waited for only where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Adds up the wall time of named stages.

    CUDA work is asynchronous, so a stage on a CUDA device ends with a synchronisation. On a CPU
    nothing is waited for.

    Args:
        device: Where the work runs.
        on_stage: Called with a stage's name when it begins (progress bars).

    >>> clock = StageClock("cpu")
    >>> with clock("vision"):
    ...     pass
    >>> list(clock.seconds)
    ['vision']
    """

    def __init__(
        self, device: torch.device | str, on_stage: Callable[[str], None] | None = None
    ) -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, float] = {}
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times the block under `stage`."""
        self.announce(stage)
        begin = self.now()
        try:
            yield
        finally:
            self.add(stage, self.now() - begin)

    def announce(self, stage: str) -> None:
        """Tells the listener that a stage begins."""
        if self._on_stage is not None:
            self._on_stage(stage)

    def now(self) -> float:
        """Seconds, once the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
