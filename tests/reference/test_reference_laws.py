"""Frequencies of the draws against the probabilities of ALGORITHMS 1.3, by the chi-square test.

Seeds are fixed, so that a test fails always or never; each asks for p > 1e-4 as the golden vectors
do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cacovid.errors import InvalidInputError
from cacovid.reference import clip_max, frame_sample, ocss_sample, subspaces
from cacovid.reference.frame_sample import frame_plan
from cacovid.testing.laws import chi_square_p_value, without_replacement
from cacovid.types import Grid

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OCSS = load_file(GOLDEN / "ocss_shared.safetensors")
CASES = json.loads((GOLDEN / "shared.json").read_text())["ocss"]
DRAWS = 20_000


def set_counts(drawn: Tensor, entries: int, sets: list[tuple[int, ...]]) -> Tensor:
    """How often each of `sets` (of 20 entries at most) was drawn; `drawn`: `[G, k]`, ascending."""
    code = (1 << drawn.long()).sum(1).bincount(minlength=1 << entries)
    return code[[sum(1 << i for i in members) for members in sets]]


def log_probabilities(case: dict[str, Any]) -> Tensor:
    return OCSS[f"{case['i']}/probabilities"].log()


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["i"]))
def test_golden_subspaces_are_drawn_as_often_as_published(case: dict[str, Any]) -> None:
    scores = log_probabilities(case)
    drawn = ocss_sample(
        scores,
        [(1, 1, case["tokens"])],
        case["ratio"],
        DRAWS + 1,
        subspace_factor=case["subspace_factor"],
        max_subspace_prob=case["max_subspace_prob"],
        seed=case["i"],
    )[1:]
    assert drawn.shape == (DRAWS, case["k"])
    law = subspaces(scores, case["ratio"], max_subspace_prob=case["max_subspace_prob"])
    member_of = torch.empty(case["tokens"], dtype=torch.int64)
    member_of[law.order] = torch.repeat_interleave(torch.arange(len(law.sizes)), law.sizes)
    chosen = member_of[drawn.long()]
    assert (chosen == chosen[:, :1]).all()
    counts = chosen[:, 0].bincount(minlength=len(law.sizes))
    expected = OCSS[f"{case['i']}/subspace_probabilities"].double() * DRAWS
    assert chi_square_p_value(counts, expected) > 1e-4


def test_single_tokens_are_drawn_by_the_product_of_both_probabilities() -> None:
    scores = torch.randn(64, generator=torch.Generator().manual_seed(5)) * 2
    drawn = ocss_sample(scores, [(1, 8, 8)], 0.02, DRAWS + 1, subspace_factor=8.0, seed=11)[1:]
    assert drawn.shape == (DRAWS, 1)
    law = subspaces(scores, 0.02, subspace_factor=8.0)
    assert len(law.sizes) == 6
    expected = (law.probabilities @ law.weights) * DRAWS
    assert chi_square_p_value(drawn.flatten().bincount(minlength=64), expected) > 1e-4


def test_sets_inside_a_subspace_follow_the_law_without_replacement() -> None:
    scores = torch.randn(9, generator=torch.Generator().manual_seed(6)) * 2
    drawn = ocss_sample(scores, [(1, 3, 3)], 0.35, DRAWS + 1, subspace_factor=2.0, seed=3)[1:]
    law = subspaces(scores, 0.35)
    assert len(law.sizes) == 1 and drawn.shape == (DRAWS, 3)
    sets = without_replacement(law.weights[0].tolist(), 3)
    expected = torch.tensor(list(sets.values())) * DRAWS
    assert chi_square_p_value(set_counts(drawn, 9, list(sets)), expected) > 1e-4


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("frames", [2, 8, 13, 18])
def test_frames_follow_the_capped_softmax(frames: int, spread: float) -> None:
    scores = torch.randn(frames, generator=torch.Generator().manual_seed(7)) * spread
    mask = frame_sample(scores, [(frames, 2, 2)], 0.1, DRAWS + 1, seed=frames)[1:]
    choose = -(-frames // 8)
    p = clip_max(torch.softmax(scores.double(), 0), 3 / frames)
    sets = without_replacement(p.tolist(), choose)
    drawn = mask.nonzero()[:, 1].view(DRAWS, choose)
    expected = torch.tensor(list(sets.values())) * DRAWS
    assert chi_square_p_value(set_counts(drawn, frames, list(sets)), expected) > 1e-4


def test_frames_by_the_published_cap_are_floored_only() -> None:
    scores = torch.randn(12, generator=torch.Generator().manual_seed(8)) * 3
    counts = torch.zeros(66)
    p = torch.softmax(scores.double(), 0).clamp(min=1 / 64)
    sets = without_replacement(p.tolist(), 2)
    draws = 0
    for offset in range(1500):
        mask = frame_sample(
            scores, [(12, 1, 1)], 0.1, 8, frame_cap="published", seed=1, offset=offset
        )[1:]
        counts += set_counts(mask.nonzero()[:, 1].view(7, 2), 12, list(sets))
        draws += 7
    assert chi_square_p_value(counts, torch.tensor(list(sets.values())) * draws) > 1e-4
    capped = clip_max(torch.softmax(scores.double(), 0), 3 / 12)
    other = torch.tensor(list(without_replacement(capped.tolist(), 2).values())) * draws
    assert chi_square_p_value(counts, other) < 1e-4


def test_the_frame_plan() -> None:
    plan = frame_plan(Grid([(32, 14, 14), (1, 2, 2), (9, 1, 1), (3, 2, 2)]), 0.02, 8)
    assert [p.choose for p in plan] == [4, 1, 2, 1]
    assert [p.keep for p in plan] == [4 * 32, 1, 2, 3]  # the last two: what the frames hold
    assert frame_plan(Grid([(37, 2, 2)]), 0.1, 8, "published")
    with pytest.raises(InvalidInputError, match=r"38 frames and 8 rollouts.*frame_cap='row'"):
        frame_plan(Grid([(38, 2, 2)]), 0.1, 8, "published")
    with pytest.raises(InvalidInputError, match="frame_cap is 'none'"):
        frame_plan(Grid([(3, 2, 2)]), 0.1, 8, "none")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="ratio is 0"):
        frame_plan(Grid([(3, 2, 2)]), 0, 8)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_frame_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InvalidInputError, match="frame_scores has NaN or infinite"):
        frame_sample(torch.tensor([0.0, bad]), [(2, 1, 1)], 0.5, 2, seed=0)


def test_the_chi_square_test_knows_tables() -> None:
    # 16.919 is the 5% point at 9 degrees of freedom.
    expected = torch.full((10,), 100.0)
    shift = (16.919 * 100 / 2) ** 0.5
    observed = expected + torch.tensor([shift, -shift, *[0.0] * 8])
    assert chi_square_p_value(observed, expected) == pytest.approx(0.05, abs=1e-4)
