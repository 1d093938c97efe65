"""Host time of a session beside the policy and the ops that it calls, on the CPU.

    python -m pytest bench/test_bench_session.py --benchmark-group-by=group

At 8 frames the arithmetic is small, so that what a call costs besides shows. On a GPU
`cacovid bench --ops prune` reads the device's own clock.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cacovid import (
    CompressionSession,
    CrossAttentionConfig,
    CrossAttentionPolicy,
    Grid,
    Prompt,
    Pruned,
    ops,
)

GRID, WIDTH, QUESTION, RETENTION = Grid([(8, 14, 14)]), 896, 40, 0.1


@pytest.mark.benchmark(group="prune, N = 1568, D = 896, r = 0.1, float32, with the question")
@pytest.mark.parametrize("way", ["policy and ops", "session", "session, question read ahead"])
def test_prune(benchmark: Any, way: str) -> None:
    torch.manual_seed(0)
    policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=WIDTH)).requires_grad_(False)
    video, question = torch.randn(GRID.num_tokens, WIDTH), torch.randn(QUESTION, WIDTH)
    positions = torch.arange(GRID.num_tokens)
    session = CompressionSession(policy, GRID, retention=RETENTION, device="cpu")

    def separately() -> Pruned:
        n, total = GRID.num_tokens, GRID.num_tokens + QUESTION
        prompt = Prompt(
            embeds=torch.cat((video, question)),
            position_ids=torch.arange(total),
            video_index=torch.arange(n),
            question_index=torch.arange(n, total),
            grid=GRID,
        )
        scores = policy(prompt)
        keep, rows = ops.select_and_gather(scores.token, scores.frame, video, GRID, RETENTION)
        return Pruned(keep, rows, positions[keep])

    read = session.read_question(question)
    run = {
        "policy and ops": separately,
        "session": lambda: session(video, question, positions),
        "session, question read ahead": lambda: session(video, read, positions),
    }[way]
    assert torch.equal(benchmark(run).keep, separately().keep)
