"""Rows of the vision tower, held for the next question on the same video."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor


class FeatureCache:
    """The rows of the videos used last, in the host's memory, up to a number of bytes.

    On the host, because vLLM has given the device's memory away by then. What is held hangs on
    keys and sizes alone: workers that see the same requests hold the same videos, so that the
    vision tower, whose layers talk between workers, runs on all of them or on none.

    Args:
        max_bytes: 0: nothing is held.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes, device: torch.device) -> Tensor | None:
        """The rows under `key`, on `device`, or None.

        The copy does not wait: it is in the order of the device's current stream.
        """
        rows = self._rows.get(key)
        if rows is None:
            return None
        self._rows.move_to_end(key)
        return rows.to(device, non_blocking=True)

    def put(self, key: bytes, rows: Tensor) -> None:
        """Holds a copy of the rows; the videos used longest ago make room.

        Rows that do not fit at all are not held.
        """
        size = rows.numel() * rows.element_size()
        self._drop(key)
        if size > self.max_bytes:
            return
        while self.held_bytes + size > self.max_bytes:
            self._drop(next(iter(self._rows)))
        # Pinned memory, so that neither way waits for the device.
        held = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
        self._rows[key] = held.copy_(rows, non_blocking=True)
        self.held_bytes += size

    def _drop(self, key: bytes) -> None:
        rows = self._rows.pop(key, None)
        if rows is not None:
            self.held_bytes -= rows.numel() * rows.element_size()
