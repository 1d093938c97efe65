"""The CPU ops against plain PyTorch, the published procedures and bare products or copies.

    OMP_NUM_THREADS=1 python bench/cpu_ops.py --rounds 5 [--only score points]

All ways of one row are timed in turn (A B C A B C), on random data. Time is the processor's, of
one thread unless `--wall` is given, so that a busy machine counts less; ratios are medians of the
rounds' own ratios. Writes `results/cpu-ops.csv` and `results/cpu-ops.md`.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import procedures as plain
import torch
from torch import Tensor

from cacovid import ops, reference
from cacovid.benchmark import published
from cacovid.benchmark import self_attention as paper
from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy
from cacovid.reference.ocss import ocss_plan, subspace_cap
from cacovid.reference.select_tokens import select_plan
from cacovid.types import Grid

RESULTS = Path(__file__).resolve().parent / "results"
FIELDS = ("op", "size", "way", "median_ms", "p20_ms", "p80_ms", "ratio_to_ours", "target")


@dataclass(frozen=True)
class Row:
    """One comparison: `ours` and other ways to the same result.

    Args:
        op: Name of the op.
        size: What it runs on.
        ways: Calls by name; `ours` is one of them.
        targets: What PERFORMANCE asks of the ratio to a way.
    """

    op: str
    size: str
    ways: dict[str, Callable[[], Any]]
    targets: dict[str, str]


def score_rows() -> Iterator[Row]:
    """K1 beside its bare product, the folded and the unfolded formula in eager PyTorch."""
    grid = Grid([(32, 14, 14)])
    names = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}
    for width in (3584, 896):
        policy = CrossAttentionPolicy(CrossAttentionConfig(hidden_size=width))
        policy.requires_grad_(False)
        for dtype, name in names.items():
            x, question = (torch.randn(c, width).to(dtype) for c in (grid.num_tokens, 40))
            fold = policy.fold(question)
            columns = fold.columns.to(dtype)
            ways: dict[str, Callable[[], Any]] = {
                "ours": lambda x=x, fold=fold: ops.score(x, fold, grid, backend="cpu"),
                "bare product": lambda x=x, columns=columns: x @ columns,
                "eager, folded": lambda x=x, fold=fold: reference.score(x, fold, grid),
                "eager, unfolded": lambda x=x, q=question, policy=policy: plain.unfolded_scores(
                    x, q, policy, 32
                ),
            }
            if dtype is torch.bfloat16:
                low = CrossAttentionPolicy(policy.config).to(dtype).requires_grad_(False)
                ways["eager, unfolded, all in bf16"] = lambda x=x, q=question, low=low: (
                    plain.unfolded_scores(x, q, low, 32)
                )
            yield Row(
                "score", f"N = 6272, D = {width}, C = {columns.shape[1]}, {name}", ways,
                {"bare product": "<= 1.3", "eager, unfolded": ">= 8"},
            )  # fmt: skip


def self_attention_rows() -> Iterator[Row]:
    """The paper's policy beside its plain form and its bare products and attention."""
    device = torch.device("cpu")
    sizes = ((896, 6272, torch.bfloat16), (896, 6272, torch.float32), (3584, 784, torch.bfloat16))
    for width, tokens, dtype in sizes:
        policy = paper.policy_of(width, dtype, device)
        embeds = torch.randn(tokens + sum(paper.TEXT), width).to(dtype)
        prompt = paper.prompt_of(Grid([(tokens // 196, 14, 14)]), embeds)
        inner, name = policy.config.intermediate_size, {2: "bf16", 4: "fp32"}[dtype.itemsize]
        yield Row(
            "self_attention", f"N = {tokens}, D = {width}, I = {inner}, {name}",
            {
                "ours": lambda policy=policy, prompt=prompt: policy(prompt),
                "bare products and attention": paper.bare(policy, tokens),
                "plain": lambda policy=policy, prompt=prompt: policy.plain(prompt),
            },
            {"bare products and attention": "<= 1.15"},
        )  # fmt: skip


def ocss_rows() -> Iterator[Row]:
    """K2 beside the batched form and the procedure frame by frame."""
    for frames in (32, 256):
        grid = Grid([(frames, 14, 14)])
        z = torch.randn(grid.num_tokens)
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda z=z, g=grid: ops.ocss_sample(z, g, 0.02, 32, seed=1, backend="cpu"),
            "batched PyTorch": lambda z=z, g=grid: reference.ocss_sample(z, g, 0.02, 32, seed=1),
        }
        if frames == 32:
            (plan,) = ocss_plan(grid, 0.02, 2.0, None)
            cap = subspace_cap(plan.subspaces, None)
            ways["frame by frame"] = lambda z=z, p=plan, c=cap: published.ocss_sample(
                z.view(p.frames, p.tokens), p, 32, c
            )
        yield Row(
            "ocss_sample", f"T = {frames}, n = 196, r = 0.02, G = 32", ways,
            {"batched PyTorch": ">= 5"},
        )  # fmt: skip


def select_rows() -> Iterator[Row]:
    """K3 beside the loops and PyTorch without loops on the host."""
    for frames in (32, 1024):
        grid = Grid([(frames, 14, 14)])
        z, f = torch.randn(grid.num_tokens), torch.randn(frames)
        (plan,) = select_plan(grid, 0.1)
        yield Row(
            "select_tokens", f"T = {frames}, n = 196, r = 0.1",
            {
                "ours": lambda z=z, f=f, g=grid: ops.select_tokens(z, f, g, 0.1, backend="cpu"),
                "loops": lambda z=z, f=f, p=plan: published.select_tokens(
                    z.view(p.frames, p.tokens), f, p
                ),
                "PyTorch without loops": lambda z=z, f=f, g=grid: reference.select_tokens(
                    z, f, g, 0.1
                ),
            },
            {"loops": ">= 20"} if frames == 1024 else {},
        )  # fmt: skip


def points_rows() -> Iterator[Row]:
    """Farthest points beside the loop over the distance matrix; density peaks beside cdist."""
    for width in (896, 2048, 3584):
        rows = torch.nn.functional.normalize(torch.randn(6272, width), dim=1)
        yield Row(
            "farthest_point", f"N = 6272, r = 0.1, D = {width}, fp32",
            {
                "ours": lambda x=rows: ops.farthest_point(x, 627, backend="cpu"),
                "distance matrix, O(k^2 N)": lambda x=rows: published.farthest_point(x, 627),
            },
            {"distance matrix, O(k^2 N)": ">= 20"},
        )  # fmt: skip
    rows = torch.randn(784, 896)
    yield Row(
        "density_peaks", "128 of 784, D = 896",
        {
            "ours": lambda: ops.density_peaks(rows, 128, backend="cpu"),
            "torch.cdist in float64 alone": lambda: torch.cdist(
                rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist"
            ),
        },
        {},
    )  # fmt: skip


def training_rows() -> Iterator[Row]:
    """What a training step calls besides: frames, loss with gradient, packing, gathering."""
    grid = Grid([(32, 14, 14)])
    f = torch.randn(32)
    yield Row(
        "frame_sample", "T = 32, G = 8",
        {
            "ours": lambda: ops.frame_sample(f, grid, 0.02, 8, seed=1, backend="cpu"),
            "batched PyTorch": lambda: reference.frame_sample(f, grid, 0.02, 8, seed=1),
        },
        {},
    )  # fmt: skip
    z = torch.randn(grid.num_tokens)
    masks = torch.rand(115, grid.num_tokens) < 0.02, torch.rand(40, 32) < 0.2
    rewards = torch.rand(115), torch.rand(40)

    def step(function: Callable[..., Any], **named: Any) -> tuple[Tensor, ...]:
        leaves = [(t + 0.01).requires_grad_() for t in (z, f)]
        loss = function(*leaves, z, f, *masks, *rewards, **named)
        return torch.autograd.grad(loss.total, leaves)

    yield Row(
        "cpo_loss", "with gradient, N = 6272, G = 115 (5 updates of 23)",
        {
            "ours": lambda: step(ops.cpo_loss, backend="cpu"),
            "eager autograd": lambda: step(reference.cpo_loss),
        },
        {},
    )  # fmt: skip
    prompt = plain.example_prompt(grid, 896, torch.bfloat16)
    indices = ops.ocss_sample(z, grid, 0.02, 24, seed=1)
    drawn = torch.zeros(24, grid.num_tokens, dtype=torch.bool).scatter_(1, indices.long(), True)
    copied = torch.randint(0, len(prompt.embeds), (24 * (indices.shape[1] + 60),))
    yield Row(
        "pack_rollouts", "N = 6272, D = 896, bf16, G = 24, r = 0.02",
        {
            "ours": lambda: ops.pack_rollouts(prompt, indices),
            "bare copy of the rows": lambda: prompt.embeds.index_select(0, copied),
            "repeat and index": lambda: plain.repeat_and_index(prompt, drawn),
        },
        {},
    )  # fmt: skip
    rows = torch.randn(grid.num_tokens, 3584).bfloat16()
    keep = torch.randperm(grid.num_tokens)[:627].sort().values
    yield Row(
        "gather", "627 of 6272 rows, D = 3584, bf16",
        {
            "ours": lambda: ops.gather(rows, keep, backend="cpu"),
            "index_select": lambda: rows.index_select(0, keep),
        },
        {},
    )  # fmt: skip


GROUPS = {
    "score": score_rows,
    "self_attention": self_attention_rows,
    "ocss_sample": ocss_rows,
    "select_tokens": select_rows,
    "points": points_rows,
    "training": training_rows,
}


def measure(row: Row, rounds: int, clock: Callable[[], float]) -> list[dict[str, str]]:
    """Times every way of a row in turn; a round repeats short ones up to about 10 ms."""
    repeats = {}
    for name, way in row.ways.items():
        way()
        begin = clock()
        way()
        repeats[name] = max(1, min(200, int(0.01 / max(clock() - begin, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in row.ways}
    for _ in range(rounds):
        for name, way in row.ways.items():
            begin = clock()
            for _ in range(repeats[name]):
                way()
            times[name].append(1e3 * (clock() - begin) / repeats[name])
    ours = times["ours"]
    lines = []
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, ours, strict=True))
        ordered = sorted(taken)
        lines.append(
            {
                "op": row.op,
                "size": row.size,
                "way": name,
                "median_ms": f"{statistics.median(taken):.3f}",
                "p20_ms": f"{ordered[len(ordered) // 5]:.3f}",
                "p80_ms": f"{ordered[(4 * len(ordered)) // 5]:.3f}",
                "ratio_to_ours": f"{ratio:.3g}",
                "target": row.targets.get(name, ""),
            }
        )
        print("  ".join(lines[-1].values()), flush=True)
    return lines


def markdown(lines: list[dict[str, str]], note: str) -> str:
    """The table, with its note."""
    head = ("op", "size", "way", "ms (median)", "p20 to p80", "time / ours", "target")
    out = ["# CPU ops", "", note, "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in lines:
        spread = f"{line['p20_ms']} to {line['p80_ms']}"
        target = line["target"]
        if line["way"].startswith("bare product") and target:
            target = f"ours / {line['way'].removeprefix('bare ')} {target}"
        cells = (
            line["op"], line["size"], line["way"], line["median_ms"], spread,
            line["ratio_to_ours"], target,
        )  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Parses the command line, measures, writes the tables."""
    parser = argparse.ArgumentParser(description="Times the CPU ops in turn with other ways.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS))
    parser.add_argument("--wall", action="store_true", help="wall-clock time, all threads")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if not arguments.wall:
        torch.set_num_threads(1)
    clock = time.perf_counter if arguments.wall else time.process_time
    lines: list[dict[str, str]] = []
    path = RESULTS / "cpu-ops.csv"
    if path.is_file():  # rows of groups that are not measured now stay
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    for name in arguments.only:
        for row in GROUPS[name]():
            fresh = measure(row, arguments.rounds, clock)
            lines = [a for a in lines if (a["op"], a["size"]) != (row.op, row.size)] + fresh
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(lines)
    note = (
        f"Random data; {arguments.rounds} interleaved rounds of every row; "
        f"{'wall-clock' if arguments.wall else 'processor'} time, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}. The machine was shared with other work, which "
        f"slows whatever lives in its caches. Made by `bench/cpu_ops.py`."
    )
    (RESULTS / "cpu-ops.md").write_text(markdown(lines, note))


if __name__ == "__main__":
    main()
