"""Capped probabilities and the law of the rollouts: golden vectors, and what must always hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cacovid.errors import InvalidInputError
from cacovid.reference import clip_max, subspaces
from cacovid.reference.ocss import frame_tables, ocss_plan
from cacovid.types import Grid

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SETTINGS = json.loads((GOLDEN / "shared.json").read_text())
CLIP = load_file(GOLDEN / "clip_shared.safetensors")
OCSS = load_file(GOLDEN / "ocss_shared.safetensors")


@pytest.mark.parametrize("case", SETTINGS["clip"], ids=lambda case: str(case["i"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_clipped_probabilities(case: dict[str, Any], dtype: torch.dtype) -> None:
    p, expected = (CLIP[f"{case['i']}/{name}"] for name in ("p", "clipped"))
    clipped = clip_max(p.to(dtype), case["max_prob"])
    assert clipped.dtype == dtype
    torch.testing.assert_close(clipped, expected.to(dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", SETTINGS["ocss"], ids=lambda case: str(case["i"]))
def test_golden_subspaces(case: dict[str, Any]) -> None:
    v = {name.split("/")[1]: x for name, x in OCSS.items() if name.startswith(f"{case['i']}/")}
    law = subspaces(
        v["probabilities"].double().log(),
        case["ratio"],
        subspace_factor=case["subspace_factor"],
        max_subspace_prob=case["max_subspace_prob"],
    )
    assert len(law.sizes) == case["subspaces"] and int(law.sizes.sum()) == case["tokens"]
    expected = v["subspace_probabilities"].double()
    torch.testing.assert_close(law.probabilities, expected, rtol=0, atol=1e-6)
    within = law.weights[v["chosen_subspace"]]
    torch.testing.assert_close(within, v["within_probabilities"].double(), rtol=0, atol=1e-6)
    drawn = v["mask"].bool()
    drawn[0] = False  # the greedy rollout
    assert (within[drawn] > 0).all()


def test_the_published_cap_is_the_default() -> None:
    scores = torch.randn(196, generator=torch.Generator().manual_seed(0))
    for ratio, cap in ((0.02, 0.1), (0.04, 2 / 12), (0.2, 0.9), (0.9, 1.0)):
        given = subspaces(scores, ratio, max_subspace_prob=cap)
        default = subspaces(scores, ratio)
        assert torch.equal(given.probabilities, default.probabilities)


def test_capped_rows_are_those_rows_alone_and_keep_the_cap() -> None:
    p = torch.softmax(torch.randn(6, 40, dtype=torch.float64) * 5, 1)
    together = clip_max(p.view(2, 3, 40), 0.1)
    for row, alone in zip(p, together.view(6, 40), strict=True):
        assert torch.equal(clip_max(row, 0.1), alone)
    torch.testing.assert_close(together.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert (together <= 0.1 + 1e-12).all() and (together > 0).all()


def test_clipping_by_hand() -> None:
    # The floor 1/9 first: (0.9, 1/9, 1/9) of 10.1/9 -> 0.8020, over 0.5; the others share the rest.
    clipped = clip_max(torch.tensor([0.9, 0.06, 0.04], dtype=torch.float64), 0.5)
    assert clipped.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=1e-15)
    assert clip_max(torch.tensor([4.0]), 0.2).tolist() == [1.0]
    # No cap at all is still 0.999; an impossible one leaves the rest to the last.
    assert clip_max(torch.tensor([1.0, 0.0]), 1.0).tolist() == pytest.approx([0.8, 0.2])
    assert clip_max(torch.ones(3), 0.1).tolist() == pytest.approx([0.1, 0.1, 0.8])


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3, 1.0])
def test_the_sampler_s_integers_follow_the_law(spread: float, ratio: float) -> None:
    scores = torch.randn(196, generator=torch.Generator().manual_seed(3)) * spread
    plan = ocss_plan(Grid([(1, 14, 14)]), ratio)[0]
    tables = frame_tables(scores[None], plan)
    law = subspaces(scores, ratio)
    assert torch.equal(tables.order[0], law.order)
    drawn = tables.subspace_weights[0].double()
    torch.testing.assert_close(drawn / drawn.sum(), law.probabilities, rtol=2e-4, atol=1e-6)
    for j, begin in enumerate(plan.starts[:-1]):
        members = slice(begin, plan.starts[j + 1])
        weights = tables.token_weights[0, members].double()
        expected = law.weights[j, law.order[members]]
        torch.testing.assert_close(weights / weights.sum(), expected, rtol=1e-4, atol=1e-7)


def test_equal_scores_rank_by_index_and_a_vanishing_subspace_is_uniform() -> None:
    law = subspaces(torch.zeros(10), 0.1)
    assert law.order.tolist() == list(range(10))
    peaked = subspaces(torch.tensor([0.0, -1.0, *range(-200, -208, -1)]), 0.1)
    assert peaked.sizes.tolist() == [2] * 5
    last = peaked.weights[4, 8:]
    assert last.tolist() == pytest.approx([0.5, 0.5], abs=1e-7)
    assert peaked.weights[4, :8].abs().max() == 0


def test_bad_input_is_named() -> None:
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="cap is"):
            clip_max(torch.ones(3), cap)
    for p in ([0.0, 0.0], [-0.1, 1.0], [float("nan"), 1.0]):
        with pytest.raises(InvalidInputError, match="no probabilities"):
            clip_max(torch.tensor(p), 0.5)
    with pytest.raises(InvalidInputError, match=r"expected \[..., n\]"):
        clip_max(torch.ones(3).long(), 0.5)
    with pytest.raises(InvalidInputError, match=r"expected \[n\]"):
        subspaces(torch.ones(2, 3), 0.5)
    with pytest.raises(InvalidInputError, match="finite"):
        subspaces(torch.tensor([0.0, torch.inf]), 0.5)
    with pytest.raises(InvalidInputError, match=r"ratio is 1\.5"):
        subspaces(torch.ones(3), 1.5)
    with pytest.raises(InvalidInputError, match="max_subspace_prob"):
        subspaces(torch.ones(3), 0.5, max_subspace_prob=2.0)
    with pytest.raises(InvalidInputError, match="subspace_factor"):
        subspaces(torch.ones(3), 0.5, subspace_factor=0.0)


