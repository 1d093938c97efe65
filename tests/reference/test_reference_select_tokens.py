"""The selection against the golden masks and against ALGORITHMS 1.2 in plain loops."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cacovid import ops, reference
from cacovid.reference.select_tokens import frame_quotas, select_plan
from cacovid.testing.cases import token_scores
from cacovid.types import Grid, floor_budget

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VECTORS = load_file(GOLDEN / "select_shared.safetensors")
CASES = json.loads((GOLDEN / "shared.json").read_text())["select"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["i"]))
@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
def test_golden_masks(case: dict[str, Any], module: Any) -> None:
    token, frame = (VECTORS[f"{case['i']}/{name}_logits"] for name in ("token", "frame"))
    settings = {name: case[name] for name in ("policy_share", "max_frame_ratio")}
    keep = module.select_tokens(
        token[:, 1] - token[:, 0],
        frame[:, 1] - frame[:, 0],
        [case["grid_thw"]],
        case["retention"],
        **settings,
    )
    assert keep.numel() == case["kept"]
    assert torch.equal(keep, VECTORS[f"{case['i']}/mask"].nonzero().flatten())


def plain_quotas(
    f: list[float], r: float, n: int, alpha: float, c: float
) -> list[int]:
    """ALGORITHMS 1.2, items 1 and 2, one token at a time."""
    t = len(f)
    budget = floor_budget(alpha * r, t * n)
    if budget < t:
        best = sorted(range(t), key=lambda i: (-f[i], i))[:budget]
        return [int(i in best) for i in range(t)]
    largest = max(abs(x) for x in f)
    g = [3 * x / largest for x in f] if largest else f
    exps = [Fraction(math.exp(x - max(g))) for x in g]
    total = sum(exps)
    low, high = Fraction(1, 2 * t), Fraction(c) / (t * Fraction(r))
    clipped = [min(max(e / total, low), high) for e in exps]
    share = [s / sum(clipped) for s in clipped]
    cap = min(n, max(1, floor_budget(alpha * c, n)))
    q = [min(max(round(s * round(alpha * r * t * n)), 1), cap) for s in share]
    while sum(q) > budget:
        q[q.index(max(q))] -= 1
    while sum(q) < budget:
        q[q.index(min(q))] += 1
    assert max(q) <= n
    return q


def plain_selection(z: list[float], q: list[int], n: int, total: int) -> list[int]:
    """Items 3 and 4."""
    keep: set[int] = set()
    for i, quota in enumerate(q):
        frame = range(i * n, (i + 1) * n)
        keep |= set(sorted(frame, key=lambda j: (-z[j], j))[:quota])
    others = [j for j in range(len(q) * n) if j not in keep]
    rest = total - len(keep)
    positions = [round(Fraction(j * (len(others) - 1), max(rest - 1, 1))) for j in range(rest)]
    return sorted(keep | {others[p] for p in positions})


@pytest.mark.parametrize("seed", range(40))
def test_selection_equals_the_plain_statement(seed: int) -> None:
    rng = random.Random(seed)
    t, h, w = rng.choice((1, 2, 5, 12, 31)), rng.randint(1, 6), rng.randint(1, 6)
    n = h * w
    r = rng.choice((0.05, 0.1, 0.3, 0.77, 1.0))
    alpha = rng.choice((0.0, 0.25, 0.5, 0.9))
    c = rng.choice((1.5, 1.5, 0.8, 3.0)) * r
    z = token_scores(t * n, rng.choice(("normal", "ties", "flat")), seed)
    f = token_scores(t, rng.choice(("normal", "ties", "flat", "peaked")), seed + 1)
    total = max(1, floor_budget(r, t * n))
    keep = reference.select_tokens(z, f, [(t, h, w)], r, policy_share=alpha, max_frame_ratio=c)
    quotas = plain_quotas(f.tolist(), r, n, alpha, c)
    assert keep.tolist() == plain_selection(z.tolist(), quotas, n, total)


@pytest.mark.parametrize("frames", [1, 3, 64])
def test_quotas_are_within_their_bounds(frames: int) -> None:
    for seed in range(10):
        plan = select_plan(Grid([(frames, 5, 5)]), 0.4, 0.5)[0]
        quotas: Tensor = frame_quotas(token_scores(frames, "peaked", seed), plan)
        assert int(quotas.sum()) == plan.budget
        assert int(quotas.min()) >= 1 and int(quotas.max()) <= plan.tokens
