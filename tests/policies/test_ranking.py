"""The global top-k of packed videos, up to a million tokens."""

from __future__ import annotations

import pytest
import torch

from cacovid import Grid
from cacovid.policies.ranking import highest_scores


@pytest.mark.parametrize("kind", ["normal", "ties", "alike"])
def test_a_million_tokens_beside_a_few(kind):
    grid = Grid([(1, 2, 2), (1000, 25, 40), (3, 1, 7)])
    scores = torch.randn(grid.num_tokens, generator=torch.Generator().manual_seed(0))
    if kind == "ties":
        scores = scores.round()  # nine values or so, with 0.0 and -0.0 among them
    elif kind == "alike":
        scores = torch.zeros_like(scores)
    counts = [1, 100_003, 21]
    keep = highest_scores(scores, grid, counts)
    assert keep.dtype == torch.int64 and bool((keep.diff() > 0).all())
    begin = 0
    for own, count, chosen in zip(
        scores.split(list(grid.tokens_per_video)), counts, keep.split(counts), strict=True
    ):
        # The count-th largest value: all above it are kept, and of its equals the first ones.
        level = own.kthvalue(len(own) - count + 1).values
        above = own > level
        equal = (own == level).nonzero().flatten()[: count - int(above.sum())]
        wanted = torch.cat((above.nonzero().flatten(), equal)).sort().values
        assert torch.equal(chosen - begin, wanted)
        begin += len(own)
