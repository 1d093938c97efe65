"""Policies and inputs of a session, and a recorder that acts like a graph on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

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


class GraphOnHost:
    """Records as CUDA graphs do: a replay reads the same inputs and overwrites the same outputs."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Recording:
        self.recorded += 1
        # A capture computes nothing: what the outputs hold before the first replay is no result.
        outputs = tuple(out.clone() for out in function(*inputs))
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
    if kind == "self":
        config = SelfAttentionConfig(
            hidden_size=width, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48
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
