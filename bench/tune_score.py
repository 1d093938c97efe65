"""Finds the launch configuration of `score` on this machine's GPU, and writes it down.

    python bench/tune_score.py [--seconds 30] [--write]

Candidates are tried on the design point (C = 128, bfloat16) at several sizes, in rotation over four
inputs so that none stays in the L2 cache; a candidate that does not give the default's scores to
the error of bfloat16 is not considered. All are compiled first, by several processes at once, into
Triton's cache; `--seconds` is for the timing that follows. Prints medians and the share of this
run's copy bandwidth; `--write` puts the winners into `kernels/configs/<device>.json`, which goes
before `default.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cacovid.kernels import configurations
from cacovid.kernels.score import score_fwd_triton

#: Ascending. A size stands for those around it, see `bounds`. All are multiples of 16, of which
#: Triton compiles forms of their own.
SIZES = (784, 1568, 6272, 12544, 50176, 200704)
WIDTH, SLOTS, FEATURES, TOKENS_PER_FRAME = 3584, 64, 64, 196
COLUMNS = SLOTS + FEATURES
INPUTS = 4
#: Most by which scores of two configurations may differ, relative to their spread.
TOLERANCE = 2e-2
#: Up to here tiles are too few to fill a device, and `D` may be split (kernels/README.md).
SPLIT_UP_TO = 12544
#: Processes that compile: each holds a CUDA context.
COMPILERS = 12
#: Properties that a launch reads.
NEEDED = {
    "score_fwd": {"FUSED", "BLOCK_N", "BLOCK_K", "DESCRIPTORS", "num_warps", "num_stages"},
    "score_project": {
        "FUSED", "BLOCK_N", "BLOCK_C", "BLOCK_K", "SPLIT_K", "FINISH_N", "FINISH_WARPS",
        "DESCRIPTORS", "num_warps", "num_stages",
    },
}  # fmt: skip


def candidates(tokens: int, descriptors: bool) -> list[configurations.Config]:
    """What is tried at a size, the likely ones first: splits of `D` where tokens are few.

    Args:
        tokens: `N`.
        descriptors: Whether the device has tensor descriptors.
    """
    fused = [
        {"FUSED": 1, "BLOCK_N": rows, "BLOCK_K": 64, "num_warps": warps, "num_stages": stages}
        for stages, (rows, warps) in itertools.product(
            (4, 3, 5), ((64, 4), (128, 8), (128, 4), (256, 8))
        )
    ]
    split = [
        {
            "FUSED": 0, "BLOCK_N": 64, "BLOCK_C": columns, "BLOCK_K": 64, "SPLIT_K": parts,
            "FINISH_N": 16, "FINISH_WARPS": 8, "num_warps": 4, "num_stages": 4,
        }
        for parts, columns in ((4, 128), (2, 128), (8, 64), (8, 128), (4, 64))
    ]  # fmt: skip
    if tokens <= SPLIT_UP_TO // 2:
        ordered = [*split, *fused]
    else:
        ordered = [*fused, *split] if tokens <= SPLIT_UP_TO else fused
    return [{**config, "DESCRIPTORS": int(descriptors)} for config in ordered]


def arguments(tokens: int, count: int = INPUTS) -> list[tuple[Any, ...]]:
    """Random inputs of the op, the weights shared."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    half = FEATURES // 2
    columns = (draw(COLUMNS, WIDTH) / WIDTH**0.5).bfloat16()
    heads = [draw(1, half * half + 3 * half + 1) * 0.3 for _ in range(2)]
    rest = (columns, draw(SLOTS, FEATURES), *heads)
    sizes = [tokens // TOKENS_PER_FRAME, TOKENS_PER_FRAME, 0]
    settings = (sizes, [SLOTS], half, 2, False, 1e-6, None)
    return [(draw(tokens, WIDTH).bfloat16(), *rest, *settings) for _ in range(count)]


def compile_one(config: configurations.Config) -> str:
    """Runs a configuration once, which leaves it in Triton's cache; says what went wrong."""
    try:
        score_fwd_triton(*arguments(SIZES[0], 1)[0], config=config)
        torch.cuda.synchronize()
    except Exception as error:  # too much shared memory on this device, for one
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def compile_all(configs: Sequence[configurations.Config]) -> list[configurations.Config]:
    """Compiles side by side; returns those that ran."""
    workers = max(1, min(COMPILERS, len(os.sched_getaffinity(0)) - 2, len(configs)))
    try:
        # A process that has a CUDA context must not be forked.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            said = list(pool.map(compile_one, configs))
    except BrokenProcessPool:
        print("compiling side by side failed; each is compiled when it is tried", file=sys.stderr)
        return list(configs)
    for config, wrong in zip(configs, said, strict=True):
        if wrong:
            print(f"  {config}: {wrong}", file=sys.stderr)
    return [config for config, wrong in zip(configs, said, strict=True) if not wrong]


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


def default_of(tokens: int, device: torch.device) -> configurations.Config:
    """The whole configuration that serves a size now, of whichever form."""
    given = (device, torch.bfloat16, COLUMNS, tokens)
    config = configurations.find("score_fwd", *given)
    return config if config["FUSED"] else configurations.find("score_project", *given)


def same_scores(got: Any, expected: Any) -> bool:
    """Whether scores agree to the error of bfloat16; NaN agrees with nothing.

    Frames of random tokens hardly differ in their means, so that the tokens' spread serves both.
    """
    allowed = TOLERANCE * float(expected.token.std())
    return all(
        float((mine - other).abs().max()) <= allowed
        for mine, other in ((got.token, expected.token), (got.frame, expected.frame))
    )


def tune(
    tokens: int, configs: Sequence[configurations.Config], deadline: float
) -> configurations.Config:
    """The fastest of the default and those candidates that the time allows."""
    inputs = arguments(tokens)
    best, fastest = default_of(tokens, torch.device("cuda")), median_ms(inputs, None)
    expected = score_fwd_triton(*inputs[0])
    floor = copy_ms(tokens) / 2  # half the bytes of a copy
    print(f"N = {tokens}: default {fastest * 1e3:.1f} us, {floor / fastest:.0%} of the copy")
    for config in configs:
        if time.monotonic() > deadline:
            print("  out of time; the rest is not tried", file=sys.stderr)
            break
        try:
            got = score_fwd_triton(*inputs[0], config=config)
        except Exception as error:
            print(f"  {config}: {type(error).__name__}", file=sys.stderr)
            continue
        if not same_scores(got, expected):
            print(f"  {config}: other scores", file=sys.stderr)
            continue
        took = median_ms(inputs, config)
        print(f"  {took * 1e3:8.1f} us, {floor / took:.0%} of the copy: {config}")
        if took < fastest:
            best, fastest = config, took
    return best


def bounds() -> list[int | None]:
    """Up to how many tokens each size stands: halfway to the next by ratio, the last for all."""
    return [*(math.isqrt(a * b) for a, b in pairwise(SIZES)), None]


def entries(winners: Mapping[int, configurations.Config]) -> dict[str, list[dict[str, Any]]]:
    """The winner of every size as entries of a device's file.

    Every size has one in `score_fwd`, be it the default: the first entry that is large enough
    serves, so that a size without one would be given to the next. Splits have a second, in
    `score_project`.

    Args:
        winners: By each of `SIZES`.
    """
    made: dict[str, list[dict[str, Any]]] = {"score_fwd": [], "score_project": []}
    for tokens, most in zip(SIZES, bounds(), strict=True):
        config = winners[tokens]
        scope = {"dtypes": ["bfloat16", "float16"], "columns": COLUMNS, "tokens": most}
        if config["FUSED"]:
            made["score_fwd"].append({**scope, **config})
        else:
            made["score_fwd"].append({**scope, "FUSED": 0})
            made["score_project"].append({**scope, **config})
    check(made)
    return made


def check(made: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuses entries that a launch could not read.

    Raises:
        ValueError: naming the entry.
    """
    scopes = {entry["tokens"] for entry in made["score_project"]}
    for op, needed in NEEDED.items():
        for entry in made[op]:
            split = op == "score_fwd" and not entry["FUSED"]
            if split and entry["tokens"] not in scopes:
                raise ValueError(f"{entry} of {op} has no entry of its size in score_project")
            missing = set() if split else needed - entry.keys()
            if missing:
                raise ValueError(f"{entry} of {op} lacks {', '.join(sorted(missing))}")
            wrong = [key for key in needed & entry.keys() if not isinstance(entry[key], int)]
            if wrong:
                raise ValueError(f"{entry} of {op}: {', '.join(sorted(wrong))} are no integers")


def main() -> None:
    """Tunes every size and prints, or writes, the entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune_score: no CUDA device; configurations are tuned on the GPU itself")
    descriptors = torch.cuda.get_device_capability()[0] >= 9
    began = time.monotonic()
    ran = compile_all(candidates(SPLIT_UP_TO, descriptors))
    print(f"{len(ran)} candidates compiled in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    winners = {}
    for number, tokens in enumerate(SIZES, start=1):
        tried = [config for config in candidates(tokens, descriptors) if config in ran]
        winners[tokens] = tune(tokens, tried, began + options.seconds * number / len(SIZES))
    name = torch.cuda.get_device_name()
    # What the file has of other ops stays.
    content = {
        **configurations.read(configurations.device_file(name)),
        "measured": name,
        **entries(winners),
    }
    text = json.dumps(content, indent=2) + "\n"
    path = configurations.folder() / configurations.device_file(name)
    if options.write:
        path.write_text(text)
        print(f"written: {path}")
    else:
        print(text)


if __name__ == "__main__":
    main()
