"""Policies and inputs of a session, and a recorder that acts like a graph on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cacovid import (
    CompressionSession,
    CrossAttentionConfig,
    CrossAttentionPolicy,
    Grid,
    SelfAttentionConfig,
    SelfAttentionPolicy,
)
from cacovid.session.recording import Recording

WIDTH = 32


class Work(TorchDispatchMode):
    """Lists the ops that compute something, which are launches on a GPU; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(r.alias_info and not r.alias_info.is_write for r in op._schema.returns):
            self.names.append(op._schema.name)
        return op(*args, **(kwargs or {}))


class GraphOnHost:
    """Records as CUDA graphs do: a replay reads the same inputs and overwrites the same outputs.

    `work` names the ops of the last recording.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.work: list[str] = []

    def record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Recording:
        self.recorded += 1
        # A capture computes nothing: what the outputs hold before the first replay is no result.
        with Work() as work:
            made = function(*inputs)
        self.work = work.names
        outputs = tuple(out.clone() for out in made)
        for out in outputs:
            out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).min)

        def replay() -> None:
            self.replayed += 1
            for out, value in zip(outputs, function(*inputs), strict=True):
                out.copy_(value)

        return Recording(replay, outputs)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[GraphOnHost]:
    """Sessions made from now on record on the CPU: the video side's first, then the question's."""
    made: list[GraphOnHost] = []

    def make(_session: CompressionSession) -> GraphOnHost:
        made.append(GraphOnHost())
        return made[-1]

    monkeypatch.setattr(CompressionSession, "_make_recorder", make)
    return made


@pytest.fixture(params=["cross", "cross_without_slots", "self"])
def policy(request: pytest.FixtureRequest) -> Any:
    return make_policy(request.param)


def make_policy(kind: str, width: int = WIDTH) -> Any:
    torch.manual_seed(0)
    if kind.startswith("self"):
        config = SelfAttentionConfig(
            hidden_size=width,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            mrope_section=(2, 1, 1) if kind == "self_three_axes" else None,
        )
        return SelfAttentionPolicy(config)
    slots = 0 if kind == "cross_without_slots" else 8
    settings = {"inter_frame": True, "policy_share": 0.7, "max_frame_ratio": 0.9}
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=width, slots=slots, **settings))


def inputs_of(
    grid: Grid, length: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Video, question, and positions of both: text stood before the video, a newline after it."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(grid.num_tokens, WIDTH, generator=generator).to(dtype)
    question = torch.randn(length, WIDTH, generator=generator).to(dtype)
    n = grid.num_tokens
    positions = torch.cat((torch.arange(4, 4 + n), torch.arange(n + 5, n + 5 + length)))
    return video, question, positions
