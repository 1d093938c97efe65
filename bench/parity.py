"""Counts rollout-frames on which two implementations of the samplers differ.

    OMP_NUM_THREADS=1 python bench/parity.py --rollout-frames 10000000 --reference-share 0.1
    python bench/parity.py --device cuda          (needs a GPU and the CUDA library)

Random grids, ratios, kinds of scores, seeds and offsets. On the CPU the compiled form draws all of
them and the reference, which is slower, a share; what the compiled form draws alone must repeat
itself video by video (a pack equals its videos alone). On CUDA the device's form draws, and the
compiled form of the CPU draws all of it again. What both draw must be equal. Frame rollouts are
drawn beside the token rollouts and compared likewise. Exits with 1 on a mismatch; `--write FILE`
puts the counts of a GPU into its section of `results/parity.md`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacovid import ops
from cacovid.testing.cases import token_scores
from cacovid.types import Grid

KINDS = ("normal", "normal", "ties", "peaked", "flat", "huge", "tiny")
ON_GPU = "## On a GPU"


@dataclass
class Counts:
    """What was drawn and compared.

    Args:
        drawn: Rollout-frames.
        compared: Of them, drawn by both implementations.
        alone: Of them, compared with their videos drawn alone.
        mismatches: Token rollouts that differ.
        frame_rollouts: Compared.
        frame_mismatches: Of them.
    """

    drawn: int = 0
    compared: int = 0
    alone: int = 0
    mismatches: int = 0
    frame_rollouts: int = 0
    frame_mismatches: int = 0

    @property
    def wrong(self) -> bool:
        """Whether anything differs."""
        return bool(self.mismatches or self.frame_mismatches)


def compare(first: str, second: str, most: int, share: float, seed: int) -> Counts:
    """Draws until enough rollout-frames are there.

    Args:
        first: The backend that draws all; `"cuda"` has its inputs on the device.
        second: The backend that draws `share` of it again, on the CPU.
        most: Rollout-frames.
        share: Of the rollout-frames that `second` draws; the others are drawn video by video.
        seed: Of everything random.
    """
    device, rng, counts = "cuda" if first == "cuda" else "cpu", random.Random(seed), Counts()
    while counts.drawn < most:
        sizes = [
            (rng.randint(1, 64), 1, rng.choice((1, 4, 7, 49, 63, 196, 196, 729)))
            for _ in range(rng.randint(1, 3))
        ]
        grid, rollouts = Grid(sizes), rng.choice((2, 9, 32, 200))
        z = token_scores(grid.num_tokens, rng.choice(KINDS), rng.getrandbits(30))
        ratio = [rng.choice((0.02, 0.02, 0.1, rng.uniform(0.005, 1.0))) for _ in sizes]
        offset = rng.choice((0, rng.getrandbits(32)))
        named: dict[str, Any] = {
            "subspace_factor": rng.choice((2.0, 2.0, 1.0, 5.0)),
            "max_subspace_prob": rng.choice((None, None, 0.05, 1.0)),
            "seed": rng.getrandbits(64),
        }
        there = z.to(device)
        got = ops.ocss_sample(there, grid, ratio, rollouts, offset=offset, **named, backend=first)
        count = grid.num_frames * rollouts
        counts.drawn += count
        if counts.compared <= share * counts.drawn:
            expected = ops.ocss_sample(
                z, grid, ratio, rollouts, offset=offset, **named, backend=second
            )
            counts.compared += count
            counts.mismatches += _differ(got, expected)
            f = token_scores(grid.num_frames, rng.choice(KINDS), rng.getrandbits(30))
            frames = [
                ops.frame_sample(
                    scores, grid, ratio, rollouts, seed=named["seed"], offset=offset, backend=by
                )
                for scores, by in ((f.to(device), first), (f, second))
            ]
            counts.frame_rollouts += rollouts
            counts.frame_mismatches += _differ(*frames)
        else:
            column = row = 0
            for v, size in enumerate(sizes):
                tokens = size[0] * size[2]
                own = ops.ocss_sample(
                    there[row : row + tokens], [size], ratio[v], rollouts, offset=offset + v,
                    **named, backend=first,
                )  # fmt: skip
                counts.mismatches += _differ(got[:, column : column + own.shape[1]] - row, own)
                row, column = row + tokens, column + own.shape[1]
            counts.alone += count
    return counts


def _differ(got: Tensor, expected: Tensor) -> int:
    """Rows that differ, wherever the two are; all of them where the shapes do."""
    got, expected = got.cpu(), expected.cpu()
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return len(expected)
    return 0 if torch.equal(got, expected) else int((got != expected).any(dim=1).sum())


def told(counts: Counts, first: str, second: str, seconds: float) -> str:
    """The counts in words.

    Args:
        counts: What was counted.
        first: The backend that drew all.
        second: The backend that it was compared with.
        seconds: How long it took.
    """
    names = {
        "cuda": "the CUDA sampler", "cpu": "the compiled sampler", "reference": "the reference",
    }  # fmt: skip
    alone = f" and {counts.alone:,} with their videos drawn alone" if counts.alone else ""
    where = f"{torch.cuda.get_device_name()}, " if first == "cuda" else ""
    return (
        f"{counts.drawn:,} rollout-frames drawn by {names[first]}, {counts.compared:,} of them "
        f"compared with {names[second]}{alone}: {counts.mismatches} rollouts differ. "
        f"{counts.frame_rollouts:,} frame rollouts compared with {names[second]}: "
        f"{counts.frame_mismatches} differ. {where}torch {torch.__version__}, {seconds:.0f} s."
    )


def write(path: Path, command: str, text: str) -> None:
    """Puts a run on a GPU into its section of the page, which is made if it is not there.

    Args:
        path: Of the page.
        command: That was run.
        text: What came of it.
    """
    page = path.read_text() if path.is_file() else "# The samplers on every backend\n"
    before, _, rest = page.partition(f"\n{ON_GPU}\n")
    _, heading, after = rest.partition("\n## ")
    path.write_text(
        f"{before.rstrip()}\n\n{ON_GPU}\n\n`{command}`:\n\n{text}\n" + (heading + after)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts and prints; exits with 1 on a mismatch."""
    parser = argparse.ArgumentParser(description="Rollouts of two implementations, compared.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rollout-frames", type=int, default=10_000_000)
    parser.add_argument(
        "--reference-share", type=float, default=0.1, help="on the CPU; on CUDA all is compared"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FILE", help="with --device cuda")
    options = parser.parse_args(arguments)
    if options.write is not None and options.device != "cuda":
        parser.error("--write is for the section of a GPU; expected --device cuda beside it")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no CUDA device")
    first, second, share = "cpu", "reference", options.reference_share
    if options.device == "cuda":
        first, second, share = "cuda", "cpu", 1.0
    begin = time.perf_counter()
    counts = compare(first, second, options.rollout_frames, share, options.seed)
    text = told(counts, first, second, time.perf_counter() - begin)
    print(text)
    if options.write is not None:
        command = "python bench/parity.py --device cuda"
        write(options.write, f"{command} --rollout-frames {options.rollout_frames}", text)
    sys.exit(1 if counts.wrong else 0)


if __name__ == "__main__":
    main()
