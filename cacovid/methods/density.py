"""Density peaks as values: how dense a token is, and how far from a denser one.

`cacovid.ops.density_peaks` gives the chosen rows of one set. Baselines rank by the value itself,
many sets at a time (frames, segments) or over sets whose distances do not fit into memory; here
both come from matrix products, block by block, which are exact so that copies of a row tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacovid.methods.exact import exact_rows

#: Distances that are held at a time (128 MiB); larger sets are gone through twice instead.
HELD = 1 << 24


def density_peak_scores(
    rows: Tensor, neighbours: int = 4, members: Tensor | None = None, held: int = HELD
) -> Tensor:
    """`log(rho * delta)` of each row within its set, ALGORITHMS 1.3.

    `d_ij = |x_i - x_j| / sqrt(D)`; `rho_i = exp(-mean of the smallest min(neighbours, M) d_ij^2)`,
    the row itself counted; `delta_i` is the smallest distance to a denser row, the largest
    distance of the set where none is denser. The logarithm ranks alike and does not underflow; in
    float64, since float32 would lose the distance beside a large spread.

    Args:
        rows: `[B, M, D]` float32: `B` sets.
        neighbours: Distances that make the density, at least 1.
        members: `[B, M]` bool: which rows are in their set; default all.
        held: Distances held at a time.

    Returns:
        `[B, M]` float64; `-inf` for a row alone in its set, for sets of nothing but copies of one
        row, and for rows that are no members. Copies of a row have equal scores.
    """
    count = rows.shape[1]
    at_once = max(1, held // (count * count))
    if members is None:
        members = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    parts = zip(rows.split(at_once), members.split(at_once), strict=True)
    return torch.cat([_scores(r, neighbours, m, held) for r, m in parts])


def _scores(rows: Tensor, neighbours: int, members: Tensor, held: int) -> Tensor:
    sets, count, width = rows.shape
    height = max(1, held // (sets * count))
    blocks = [slice(begin, begin + height) for begin in range(0, count, height)]
    exact = exact_rows(rows, members)
    kept = [squared_distances(exact, blocks[0], members)] if len(blocks) == 1 else None

    def distances(block: slice) -> Tensor:
        return kept[0] if kept is not None else squared_distances(exact, block, members)

    near = min(neighbours, count)
    spreads, largest = [], []
    for block in blocks:
        squared = distances(block)
        smallest = squared.topk(near, dim=-1, largest=False).values
        # Small sets have fewer distances; all rows of a set have equally many.
        spreads.append(smallest.masked_fill(smallest.isinf(), 0.0).sum(dim=-1))
        largest.append(squared.masked_fill(squared.isinf(), 0.0).amax(dim=(1, 2)))
    spread = torch.cat(spreads, dim=1).masked_fill(~members, torch.inf)
    farthest = torch.stack(largest).amax(dim=0)[:, None]

    nearest = []
    for block in blocks:
        denser = spread[:, None, :] < spread[:, block, None]
        nearest.append(distances(block).masked_fill(~denser, torch.inf).amin(dim=-1))
    separation = torch.cat(nearest, dim=1)
    separation = torch.where(separation.isinf(), farthest, separation)
    counted = members.sum(dim=1, keepdim=True).clamp(1, near)
    scores = 0.5 * (separation / width).log() - spread / (counted * width)
    return scores.masked_fill(~members, -torch.inf)


def squared_distances(rows: Tensor, block: slice, members: Tensor) -> Tensor:
    """Squared distances of a block of rows to all rows of their set.

    Args:
        rows: `[B, M, D]` float64, from `exact_rows`.
        block: Which of the `M` rows.
        members: `[B, M]` bool; distances to and from others are infinite.

    Returns:
        `[B, block, M]` float64, exact: symmetric, 0 between copies, the same in any block.
    """
    norms = rows.square().sum(dim=-1)
    some = rows[:, block]
    squared = torch.baddbmm(norms[:, None, :], some, rows.transpose(1, 2), beta=1.0, alpha=-2.0)
    squared = squared.add_(norms[:, block, None])
    apart = ~(members[:, block, None] & members[:, None, :])
    return squared.masked_fill_(apart, torch.inf)
