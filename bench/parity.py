"""Counts rollout-frames on which the compiled sampler and the reference differ.

    OMP_NUM_THREADS=1 python bench/parity.py --rollout-frames 10000000 --reference-share 0.1

Random grids, ratios, kinds of scores, seeds and offsets. The compiled form draws all of them; the
reference, which is slower, a share. What both draw must be equal; what the compiled form draws
alone must repeat itself video by video (a pack equals its videos alone). Exits with 1 on a
mismatch. Frame rollouts are drawn beside the token rollouts and compared likewise.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import torch

from cacovid import ops
from cacovid.testing.cases import token_scores
from cacovid.types import Grid

KINDS = ("normal", "normal", "ties", "peaked", "flat", "huge", "tiny")


def main() -> None:
    """Draws until enough rollout-frames are compared; prints the counts."""
    parser = argparse.ArgumentParser(description="Compiled rollouts against the reference.")
    parser.add_argument("--rollout-frames", type=int, default=10_000_000)
    parser.add_argument("--reference-share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    drawn = compared = alone = mismatches = frame_rows = frame_mismatches = 0
    begin = time.perf_counter()
    while drawn < arguments.rollout_frames:
        sizes = [
            (rng.randint(1, 64), 1, rng.choice((1, 4, 7, 49, 63, 196, 196, 729)))
            for _ in range(rng.randint(1, 3))
        ]
        grid, rollouts = Grid(sizes), rng.choice((2, 9, 32, 200))
        z = token_scores(grid.num_tokens, rng.choice(KINDS), rng.getrandbits(30))
        ratio = [rng.choice((0.02, 0.02, 0.1, rng.uniform(0.005, 1.0))) for _ in sizes]
        offset = rng.choice((0, rng.getrandbits(32)))
        named = {
            "subspace_factor": rng.choice((2.0, 2.0, 1.0, 5.0)),
            "max_subspace_prob": rng.choice((None, None, 0.05, 1.0)),
            "seed": rng.getrandbits(64),
        }
        got = ops.ocss_sample(z, grid, ratio, rollouts, offset=offset, **named, backend="cpu")
        count = grid.num_frames * rollouts
        drawn += count
        if compared <= arguments.reference_share * drawn:
            expected = ops.ocss_sample(
                z, grid, ratio, rollouts, offset=offset, **named, backend="reference"
            )
            compared += count
            mismatches += int((got != expected).any(dim=1).sum())
            f = token_scores(grid.num_frames, rng.choice(KINDS), rng.getrandbits(30))
            pair = [
                ops.frame_sample(
                    f, grid, ratio, rollouts, seed=named["seed"], offset=offset, backend=backend
                )
                for backend in ("cpu", "reference")
            ]
            frame_rows += rollouts
            frame_mismatches += int((pair[0] != pair[1]).any(dim=1).sum())
        else:
            column = row = 0
            for v, size in enumerate(sizes):
                tokens = size[0] * size[2]
                own = ops.ocss_sample(
                    z[row : row + tokens], [size], ratio[v], rollouts, offset=offset + v, **named,
                    backend="cpu",
                )  # fmt: skip
                part = got[:, column : column + own.shape[1]] - row
                mismatches += int((part != own).any(dim=1).sum())
                row, column = row + tokens, column + own.shape[1]
            alone += count
    print(
        f"{drawn:,} rollout-frames drawn by the compiled sampler, {compared:,} of them compared "
        f"with the reference and {alone:,} with their videos drawn alone: {mismatches} rollouts "
        f"differ. {frame_rows:,} frame rollouts compared with the reference: {frame_mismatches} "
        f"differ. torch {torch.__version__}, {time.perf_counter() - begin:.0f} s."
    )
    sys.exit(1 if mismatches or frame_mismatches else 0)


if __name__ == "__main__":
    main()
