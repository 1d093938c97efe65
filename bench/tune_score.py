"""Finds the launch configuration of `score` on this machine's GPU, and writes it down.

    python bench/tune_score.py [--seconds 60] [--write]

Candidates are tried on the design point (C = 128, bfloat16) at three sizes, in rotation over four
inputs so that none stays in the L2 cache; a candidate that does not give the default's scores to
the error of bfloat16 is not considered. Prints medians and the share of this run's copy bandwidth;
`--write` puts the winners into `kernels/configs/<device>.json`, which goes before `default.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from cacovid.kernels import configurations
from cacovid.kernels.score import score_fwd_triton

SIZES = (6272, 50176, 200704)
WIDTH, SLOTS, FEATURES, TOKENS_PER_FRAME = 3584, 64, 64, 196
INPUTS = 4
#: Most by which scores of two configurations may differ, relative to their spread.
TOLERANCE = 2e-2


def candidates() -> list[configurations.Config]:
    """The fused form by height, warps and stages, and splits of `D` for the smallest size."""
    fused = [
        {"FUSED": 1, "BLOCK_N": rows, "BLOCK_K": 64, "num_warps": warps, "num_stages": stages}
        for (rows, warps), stages in itertools.product(
            ((64, 4), (128, 8), (128, 4), (256, 8)), (3, 4, 5)
        )
    ]
    split = [
        {
            "FUSED": 0, "BLOCK_N": 64, "BLOCK_C": 128, "BLOCK_K": 64, "SPLIT_K": parts,
            "FINISH_N": 32, "FINISH_WARPS": 4, "num_warps": 4, "num_stages": 4,
        }
        for parts in (2, 4)
    ]  # fmt: skip
    descriptors = int(torch.cuda.get_device_capability()[0] >= 9)
    return [{**config, "DESCRIPTORS": descriptors} for config in (*fused, *split)]


def arguments(tokens: int) -> list[tuple[Any, ...]]:
    """Random inputs of the op, the weights shared."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    half = FEATURES // 2
    columns = (draw(SLOTS + FEATURES, WIDTH) / WIDTH**0.5).bfloat16()
    heads = [draw(1, half * half + 3 * half + 1) * 0.3 for _ in range(2)]
    rest = (columns, draw(SLOTS, FEATURES), *heads)
    sizes = [tokens // TOKENS_PER_FRAME, TOKENS_PER_FRAME, 0]
    settings = (sizes, [SLOTS], half, 2, False, 1e-6, None)
    return [(draw(tokens, WIDTH).bfloat16(), *rest, *settings) for _ in range(INPUTS)]


def median_ms(inputs: list[tuple[Any, ...]], config: configurations.Config | None) -> float:
    """The median time of one call: CUDA graphs of 8 calls, by events."""
    graph = torch.cuda.CUDAGraph()
    score_fwd_triton(*inputs[0], config=config)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for given in (*inputs, *inputs):
            score_fwd_triton(*given, config=config)
    return _replayed(graph, 2 * len(inputs))


def copy_ms(tokens: int) -> float:
    """The median time to copy as many bytes as `score` reads (a copy also writes them)."""
    pairs = [torch.randn(2, tokens, WIDTH, device="cuda").bfloat16() for _ in range(INPUTS)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for pair in pairs:
            pair[0].copy_(pair[1])
    return _replayed(graph, INPUTS)


def _replayed(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times[5:])


def tune(tokens: int, deadline: float) -> configurations.Config:
    """The fastest candidate at a size, of those that the time allows."""
    inputs = arguments(tokens)
    default = configurations.find("score_fwd", torch.device("cuda"), torch.bfloat16, 128, tokens)
    expected = score_fwd_triton(*inputs[0]).token
    best, fastest = default, median_ms(inputs, None)
    floor = copy_ms(tokens) / 2  # half the bytes of a copy
    print(f"N = {tokens}: default {fastest * 1e3:.1f} us, {floor / fastest:.0%} of the copy")
    for config in candidates():
        if time.monotonic() > deadline:
            print("  out of time; the rest is not tried", file=sys.stderr)
            break
        try:
            got = score_fwd_triton(*inputs[0], config=config).token
        except Exception as error:  # too much shared memory on this device, for one
            print(f"  {config}: {type(error).__name__}", file=sys.stderr)
            continue
        if float((got - expected).abs().max()) > TOLERANCE * float(expected.std()):
            print(f"  {config}: other scores", file=sys.stderr)
            continue
        took = median_ms(inputs, config)
        print(f"  {took * 1e3:8.1f} us, {floor / took:.0%} of the copy: {config}")
        if took < fastest:
            best, fastest = config, took
    return best


def main() -> None:
    """Tunes every size and prints, or writes, the entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune_score: no CUDA device; configurations are tuned on the GPU itself")
    began = time.monotonic()
    entries: dict[str, list[dict[str, Any]]] = {"score_fwd": [], "score_project": []}
    for number, tokens in enumerate(SIZES):
        config = tune(tokens, began + options.seconds * (number + 1) / len(SIZES))
        # A size stands for those up to the next; the largest for all above it.
        scope = {
            "dtypes": ["bfloat16", "float16"],
            "columns": SLOTS + FEATURES,
            "tokens": None if tokens == SIZES[-1] else tokens * 2,
        }
        if config["FUSED"]:
            entries["score_fwd"].append({**scope, **config})
        else:
            entries["score_fwd"].append({**scope, "FUSED": 0})
            entries["score_project"].append({**scope, **config})
    text = json.dumps({"measured": torch.cuda.get_device_name(), **entries}, indent=2) + "\n"
    path = configurations.folder() / configurations.device_file(torch.cuda.get_device_name())
    if options.write:
        path.write_text(text)
        print(f"written: {path}")
    else:
        print(text)


if __name__ == "__main__":
    main()
