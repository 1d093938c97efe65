"""A frozen model that no single device holds: its decoder's layers sharded by FSDP2.

Every process keeps a part of each layer and gathers the layer when it computes it, so that all
processes must run the decoder equally often. They do not by themselves: their samples differ in
batches, in generated words and in unreadable videos. `Lockstep` sees to it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from cacovid.errors import InvalidInputError, MissingDependencyError
from cacovid.models.registry import adapter_for


class Lockstep:
    """Keeps the processes' forwards of one decoder together.

    Before each forward the processes exchange one number: how many have work. A process that has
    none left calls `catch_up`, which runs the decoder on one empty token for as long as another
    works. Results do not change; a process without work waits instead of hanging.

    Args:
        decoder: Whose forwards are kept together; takes `inputs_embeds`.
        device: Where the numbers are exchanged.
    """

    def __init__(self, decoder: Any, device: torch.device) -> None:
        #: Forwards with work, and empty ones.
        self.forwards, self.idle_forwards = 0, 0
        self._decoder = decoder
        self._device = device
        self._idle = False
        weight = next(decoder.layers.parameters())
        self._empty = torch.zeros(
            (1, 1, decoder.config.hidden_size), dtype=weight.dtype, device=device
        )
        decoder.register_forward_pre_hook(self._announce)

    @torch.no_grad()
    def catch_up(self) -> None:
        """Takes part in the others' forwards until no process has work. All processes call it."""
        while float(self._working(False)) > 0.0:
            self._idle = True
            try:
                self._decoder(inputs_embeds=self._empty, use_cache=False)
            finally:
                self._idle = False
            self.idle_forwards += 1

    def _announce(self, module: nn.Module, arguments: Any) -> None:
        if not self._idle:
            self.forwards += 1
            self._working(True)  # not read: this process goes on whatever the others do

    def _working(self, work: bool) -> Tensor:
        count = torch.tensor(float(work), device=self._device)
        torch.distributed.all_reduce(count)
        return count


def shard_frozen(model: nn.Module, device: torch.device) -> Lockstep:
    """Shards a frozen model's decoder layers over all processes, in place.

    Everything else (embeddings, vision tower, head) is small beside them and stays whole on every
    process. Each layer goes to the device and is cut there before the next, so that a model on the
    CPU need never fit one GPU. Settings are those of an FSDP2 configuration of Accelerate where the
    run was launched with one.

    Args:
        model: On the CPU, or on the device.
        device: Of this process.

    Returns:
        What keeps the processes together.

    Raises:
        InvalidInputError: with one process, or an FSDP configuration that does not fit.
        MissingDependencyError: without `accelerate`.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependencyError("training needs accelerate; install cacovid[train]") from error
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    settings = _fsdp_settings()
    processes = PartialState(cpu=device.type == "cpu").num_processes
    if processes < 2:
        raise InvalidInputError(
            "the frozen model is to be sharded, but there is one process; start several: "
            "accelerate launch --config_file bench/configs/accelerate-fsdp2.yaml -m cacovid train "
            "CONFIG"
        )
    decoder = adapter_for(model).text_model(model)
    layers = set(decoder.layers.modules())
    for module in model.modules():
        if module not in layers:
            _move(module, device)
    mesh = init_device_mesh(device.type, (processes,))
    for layer in decoder.layers:
        # Said explicitly: each layer is a root of its own, and roots stay gathered by default.
        fully_shard(layer, mesh=mesh, **settings)
    return Lockstep(decoder, device)


def launched_with_fsdp() -> bool:
    """Whether `accelerate launch` was given an FSDP configuration."""
    return _flag("ACCELERATE_USE_FSDP")


def plain_launch() -> AbstractContextManager[None]:
    """Inside, Accelerate sees plain processes: FSDP is for the frozen model, DDP for the policy.

    Accelerate itself would shard what it prepares, which is the policy.

    Raises:
        InvalidInputError: for a launch with DeepSpeed.
        MissingDependencyError: without `accelerate`.
    """
    try:
        from accelerate.utils import patch_environment
    except ImportError as error:
        raise MissingDependencyError("training needs accelerate; install cacovid[train]") from error
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        raise InvalidInputError(
            "the run was launched with DeepSpeed; a frozen model is sharded by FSDP2: accelerate "
            "launch --config_file bench/configs/accelerate-fsdp2.yaml -m cacovid train CONFIG"
        )
    context: AbstractContextManager[None] = patch_environment(ACCELERATE_USE_FSDP="false")
    return context


def _fsdp_settings() -> dict[str, Any]:
    """Arguments of `fully_shard`, as Accelerate reads them from its configuration."""
    if not launched_with_fsdp():
        return {"reshard_after_forward": True}
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise InvalidInputError(
            f"fsdp_version of Accelerate's configuration is {plugin.fsdp_version}; expected 2"
        )
    settings: dict[str, Any] = {"reshard_after_forward": plugin.reshard_after_forward}
    if plugin.cpu_offload:
        settings["offload_policy"] = plugin.cpu_offload
    return settings


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def _move(module: nn.Module, device: torch.device) -> None:
    """Moves what the module itself holds; `nn.Module.to` would move the layers too."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        module._buffers[name] = buffer.to(device)
