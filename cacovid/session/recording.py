"""Functions of tensors of fixed shapes, captured once and replayed: CUDA graphs and their cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]

#: Runs before a capture: kernels are compiled, workspaces allocated, device tables cached.
WARM_UPS = 2

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Recording:
    """What a recorder made of a function.

    Args:
        replay: Computes `outputs` anew from what the recorded inputs hold now.
        outputs: The same memory at every replay.
    """

    replay: Callable[[], None]
    outputs: Tensors


class Recorder(Protocol):
    """Makes a function of tensors repeatable at little cost."""

    def record(self, function: Callable[..., Tensors], inputs: Tensors) -> Recording:
        """`function(*inputs)`, to be replayed; the inputs' memory is the recording's own."""


class CudaRecorder:
    """Captures CUDA graphs.

    The graphs of one recorder share their scratch memory, so no two of them may run at once.

    Args:
        device: Where the graphs run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[..., Tensors], inputs: Tensors) -> Recording:
        """Warms up and captures on a stream of its own; the graph has not run when this returns."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                function(*inputs)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile must not make the capture fail.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = function(*inputs)
        return Recording(graph.replay, outputs)


class Repeated:
    """A function that runs as it is at its first call and is recorded at its second.

    What is asked for once is not worth a capture (milliseconds, and the device waits for it).

    Args:
        function: Of the tensors `static`; returns new tensors.
        static: Memory that every call's inputs are copied into, where there is a recorder.
        recorder: Makes the recording; None: the function runs as it is, every time.
    """

    def __init__(
        self,
        function: Callable[..., Tensors],
        static: Sequence[Tensor],
        recorder: Recorder | None,
    ) -> None:
        self._function, self._static, self._recorder = function, tuple(static), recorder
        self._called = False
        self._recording: Recording | None = None

    @property
    def recorded(self) -> bool:
        """Whether calls are replays, whose results the next one overwrites."""
        return self._recording is not None

    def __call__(self, inputs: Tensors) -> Tensors:
        """The results for `inputs`; see `recorded`."""
        if self._recorder is None:
            return self._function(*inputs)
        for static, given in zip(self._static, inputs, strict=True):
            if static.data_ptr() != given.data_ptr() or not given.is_contiguous():
                static.copy_(given, non_blocking=True)
        if not self._called:
            self._called = True
            return self._function(*self._static)
        if self._recording is None:
            self._recording = self._recorder.record(self._function, self._static)
        self._recording.replay()
        return self._recording.outputs


class Recent(Generic[_Value]):
    """The values that were asked for last, by key.

    Args:
        size: How many are held.
        before_drop: Called before the one that was not asked for longest is given up.
    """

    def __init__(self, size: int, before_drop: Callable[[], None]) -> None:
        self._size, self._before_drop = size, before_drop
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """The value of `key`, made if it is not held."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        if len(self._values) >= self._size:
            self._before_drop()
            self._values.popitem(last=False)
        value = self._values[key] = make()
        return value
