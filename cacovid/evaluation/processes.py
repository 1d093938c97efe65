"""Several processes that share one evaluation, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

#: A process with slow videos may keep the others waiting this long.
_PATIENCE = timedelta(days=7)


class Processes:
    """This process among those of its launch.

    They share no tensors, so they wait for each other on the CPU, whatever their devices are.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._joined = False

    @property
    def is_main(self) -> bool:
        """Whether this process reports."""
        return self.rank == 0

    def device(self, name: str | None) -> str | None:
        """`name`, or with CUDA and several processes the GPU of this process's number."""
        several = self.count > 1 and "LOCAL_RANK" in os.environ and torch.cuda.is_available()
        return f"cuda:{os.environ['LOCAL_RANK']}" if name in (None, "cuda") and several else name

    def wait(self) -> None:
        """Returns once all processes are here."""
        if self.count == 1:
            return
        if not self._joined:
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
            self._joined = True
        torch.distributed.barrier()

    def close(self) -> None:
        """Leaves the others."""
        if self._joined:
            torch.distributed.destroy_process_group()
            self._joined = False
