"""The plain forms that `bench/cpu_ops.py` measures beside the ops give what the ops give."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from cacovid import ops
from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.types import Grid

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "procedures.py"


def load():
    spec = importlib.util.spec_from_file_location("bench_procedures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = load()
GRID = Grid([(3, 4, 5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_without_the_fold(dtype):
    torch.manual_seed(0)
    policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=48)).requires_grad_(False)
    prompt = plain.example_prompt(GRID, 48, dtype)
    question = prompt.question_embeds
    for own in (policy, copy.deepcopy(policy).to(dtype)):
        got = plain.unfolded_scores(prompt.video_embeds, question, own, 3)
        expected = own.plain(prompt)
        close = {"atol": 1e-5, "rtol": 1e-5} if own.query.weight.dtype == torch.float32 else {
            "atol": 0.1, "rtol": 0.1}  # fmt: skip
        for mine, theirs in zip(got, (expected.token, expected.frame), strict=True):
            torch.testing.assert_close(mine.float(), theirs, **close)


def test_rollouts_by_repeating_and_indexing():
    prompt = plain.example_prompt(GRID, 8, torch.float32)
    indices = ops.ocss_sample(torch.randn(60), GRID, 0.2, 4, seed=1)
    masks = torch.zeros(4, 60, dtype=torch.bool).scatter_(1, indices.long(), True)
    packed = ops.pack_rollouts(prompt, indices)
    assert torch.equal(torch.cat(plain.repeat_and_index(prompt, masks)), packed.embeds)
