"""The language model's prefill with and without compression, the compression's own time included.

    OMP_NUM_THREADS=1 python bench/prefill.py --llm 0.5b --layers 2 --tokens 1568 3136 6272
    python bench/prefill.py --llm 7b --device cuda          (needs a GPU; not measured yet)

The model is a Qwen2 decoder of the chosen shape with random weights; embeddings are random too, so
nothing but time is told. Both ways read an attention mask of ones and the original positions, and
run the same attention kernel, which is checked before anything is timed. `--layers` measures fewer
of the (equal) layers. All shares of one length are timed in turn. On the CPU the time is the
processor's, of one thread, unless `--wall` is given, so that a busy machine counts less.

Beside the measured speed-up stands the ratio of operations: matrix products of the layers and
causal attention, without the compression. It is what a machine of the same efficiency at every
length reaches; one that is slower at long prompts gains more.

Beside the compression as PyTorch calls it stand the kernels alone: `score`, `select_tokens` and the
gather of a tenth at the same length, the question folded before, on CUDA in a graph and by the
device's clock; and what share of the uncompressed prefill that is.
Writes `prefill-NAME.csv`, `.md` and, where matplotlib is installed, `.png`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacovid import ops
from cacovid.benchmark.cases import Setting
from cacovid.benchmark.ops import prune
from cacovid.benchmark.run import ROTATED
from cacovid.benchmark.timing import graph_sampler, host_clock, host_sampler, interleaved
from cacovid.errors import InvalidInputError
from cacovid.policies import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    SurpriseConfig,
    SurprisePolicy,
)
from cacovid.types import Grid, Prompt

RESULTS = Path(__file__).resolve().parent / "results"
TEXT = 64  # tokens of text after the video, the question
FRAME = (14, 14)
FIELDS = (
    "llm", "layers", "device", "dtype", "policy", "attention", "tokens", "text", "retention",
    "kept", "compression_ms", "prefill_ms", "total_ms", "p20_ms", "p80_ms", "speed_up",
    "speed_up_of_operations", "kernels_us", "kernels_share",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A decoder's shape.

    Args:
        hidden: `D`.
        inner: Width of the MLP.
        layers: How many.
        heads: Of the queries.
        groups: Of keys and values.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int

    def operations(self, length: int) -> float:
        """Floating point operations of a prefill: products of the layers and causal attention.

        Args:
            length: Tokens of the prompt.
        """
        keys = self.hidden // self.heads * self.groups
        weights = 2 * self.hidden**2 + 2 * self.hidden * keys + 3 * self.hidden * self.inner
        return self.layers * (2.0 * length * weights + 2.0 * length**2 * self.hidden)


SHAPES = {
    "0.5b": Shape(896, 4864, 24, 14, 2),
    "7b": Shape(3584, 18944, 28, 28, 4),
    "tiny": Shape(64, 128, 2, 4, 2),  # for the tests
}
TOKENS = {"cpu": (1568, 3136, 6272), "cuda": (6272, 12544, 25088, 50176)}


@dataclass(frozen=True)
class Row:
    """One share of one length.

    Args:
        tokens: Video tokens.
        retention: Share kept; 1: no compression.
        kept: Tokens kept.
        compression: Seconds of scoring, choosing and gathering, median.
        prefill: Seconds of the decoder, median.
        totals: Seconds of both, one for each round.
        kernels: Seconds of the kernels alone at a tenth, median; None: the tokens are no frames.
        kernels_share: Of the uncompressed prefill.
    """

    tokens: int
    retention: float
    kept: int
    compression: float
    prefill: float
    totals: tuple[float, ...]
    kernels: float | None = None
    kernels_share: float | None = None

    @property
    def total(self) -> float:
        """The median of both together."""
        return statistics.median(self.totals)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures and writes; returns the rows of the CSV file."""
    options = _options(arguments)
    device = torch.device(options.device)
    shape = SHAPES[options.llm]
    shape = replace(shape, layers=options.layers or shape.layers)
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    model = make_model(shape, device, dtype)
    policy = make_policy(options.policy, shape.hidden).to(device)
    clock = _clock(device, options.wall)
    rows: list[Row] = []
    with torch.no_grad(), _kernel(options.attention, device):
        for tokens in options.tokens or TOKENS[device.type]:
            prompt = make_prompt(tokens, shape.hidden, device, dtype)
            check_same_kernel(model, policy, prompt)
            own = measure(model, policy, prompt, options.retention, options.rounds, clock)
            alone = kernels(tokens, shape.hidden, device, dtype)
            if alone is not None:
                share = alone / own[0].prefill  # the first keeps all
                own = [replace(row, kernels=alone, kernels_share=share) for row in own]
            rows += own
            print("\n".join(_line(row, rows, shape) for row in own))
            if alone is not None:
                print(_kernels_line(own[0], shape.layers), flush=True)
    about = {
        "llm": options.llm, "layers": shape.layers, "device": _name(device),
        "dtype": options.dtype, "policy": options.policy, "attention": options.attention,
        "text": TEXT,
    }  # fmt: skip
    table = [record(row, rows, shape, about) for row in rows]
    write(table, about, shape, options)
    return table


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """The decoder without its head, random weights."""
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(
        vocab_size=8, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups, max_position_embeddings=131072,
        attn_implementation="sdpa",
    )  # fmt: skip
    with device:
        return Qwen2Model(config).to(dtype).eval().requires_grad_(False)


def make_policy(name: str, hidden: int) -> torch.nn.Module:
    """A policy with fresh weights: `cacovid` (the fused one) or `score`."""
    if name == "score":
        return SurprisePolicy(SurpriseConfig(hidden_size=hidden)).requires_grad_(False)
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=hidden)).requires_grad_(False)


def make_prompt(tokens: int, hidden: int, device: torch.device, dtype: torch.dtype) -> Prompt:
    """A video of frames of 196 tokens (or one frame of fewer), and a question."""
    each = FRAME[0] * FRAME[1]
    if tokens > each and tokens % each:
        raise InvalidInputError(f"tokens is {tokens}; expected a multiple of {each}, or fewer")
    grid = Grid([(tokens // each, *FRAME)] if tokens >= each else [(1, 1, tokens)])
    places = torch.arange(tokens + TEXT, device=device)
    return Prompt(
        embeds=torch.randn(tokens + TEXT, hidden, device=device).to(dtype),
        position_ids=places,
        video_index=places[:tokens],
        question_index=places[tokens:],
        grid=grid,
    )


def compress(policy: Any, prompt: Prompt, retention: float) -> tuple[Tensor, Tensor]:
    """Embeddings and positions of the shortened prompt: scores, choice and gather."""
    scores = policy(prompt)
    tokens = prompt.grid.num_tokens
    if policy.selection == "top_k":
        count = prompt.grid.budgets(retention)[0]
        keep = scores.token.topk(count).indices.sort().values
    else:
        keep = ops.select_tokens(scores.token, scores.frame, prompt.grid, retention)
    rows = torch.cat((keep, prompt.position_ids[tokens:]))
    return ops.gather(prompt.embeds, rows), prompt.position_ids[rows]


def prefill(model: Any, embeds: Tensor, positions: Tensor) -> Tensor:
    """The last layer's states `[S, D]`, with a cache as `generate` fills it."""
    mask = torch.ones((1, len(embeds)), dtype=torch.int64, device=embeds.device)
    out = model(
        inputs_embeds=embeds[None], attention_mask=mask, position_ids=positions[None],
        use_cache=True,
    )  # fmt: skip
    states: Tensor = out.last_hidden_state[0]
    return states


def check_same_kernel(model: Any, policy: Any, prompt: Prompt) -> None:
    """Refuses to time two kinds of attention against each other.

    A mask that is written down, or another layout, would choose another kernel.

    Raises:
        RuntimeError: if the calls of attention differ by more than their lengths.
    """
    short = compress(policy, prompt, 0.1)
    seen = []
    for embeds, positions in ((prompt.embeds, prompt.position_ids), short):
        with _watched_attention() as calls:
            prefill(model, embeds, positions)
        seen.append(set(calls))
    if seen[0] != seen[1] or not seen[0]:
        raise RuntimeError(f"attention is called in two ways: {seen[0]} and {seen[1]}")


@contextmanager
def _watched_attention() -> Iterator[list[tuple[Any, ...]]]:
    """How attention is called, but for lengths."""
    calls: list[tuple[Any, ...]] = []
    functional = torch.nn.functional
    own = functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        mask = named.get("attn_mask")
        facts = (query.dtype, query.shape[1], key.shape[1], query.shape[3])
        settings = {k: v for k, v in named.items() if k != "attn_mask"}
        calls.append((mask is None, facts, tuple(sorted(settings.items()))))
        return own(query, key, value, **named)

    functional.scaled_dot_product_attention = watched
    try:
        yield calls
    finally:
        functional.scaled_dot_product_attention = own


def measure(
    model: Any,
    policy: Any,
    prompt: Prompt,
    retentions: Sequence[float],
    rounds: int,
    clock: Callable[[], float],
) -> list[Row]:
    """All shares of one length in turn, first of all none (retention 1)."""
    shares = (1.0, *(r for r in retentions if r < 1.0))
    taken: dict[float, list[tuple[float, float]]] = {share: [] for share in shares}
    kept = {}
    for turn in range(rounds + 1):  # the first round warms up
        for share in shares:
            begin = between = clock()
            embeds, positions = prompt.embeds, prompt.position_ids
            if share < 1.0:
                embeds, positions = compress(policy, prompt, share)
                between = clock()
            prefill(model, embeds, positions)
            end = clock()
            kept[share] = len(embeds) - TEXT
            if turn:
                taken[share].append((between - begin, end - between))
    return [
        Row(
            prompt.grid.num_tokens,
            share,
            kept[share],
            statistics.median(a for a, _ in times),
            statistics.median(b for _, b in times),
            tuple(a + b for a, b in times),
        )
        for share, times in taken.items()
    ]


def kernels(tokens: int, hidden: int, device: torch.device, dtype: torch.dtype) -> float | None:
    """Seconds of `score`, `select_tokens` and the gather of a tenth, the question folded before.

    Args:
        tokens: Video tokens; None is returned where they are no frames of 196.
        hidden: `D`.
        device: On CUDA a graph is timed by the device's clock.
        dtype: Of the embeddings.
    """
    if tokens % (FRAME[0] * FRAME[1]):
        return None
    case = prune(tokens, hidden, Setting(device, dtype, compiled=False))
    (ours,) = (provider.run for provider in case.providers if provider.role == "ours")
    inputs = [case.inputs(10 * i) for i in range(ROTATED)]
    if device.type == "cuda":
        sampler = graph_sampler(ours, inputs)
    else:
        sampler = host_sampler(ours, inputs, device)
    return interleaved({"": (host_clock(device)[0], sampler)}, 0.5)[""].median


def speed_up(row: Row, rows: Sequence[Row]) -> float:
    """How many times faster than no compression: the median of the rounds' own ratios."""
    whole = next(r for r in rows if r.tokens == row.tokens and r.retention == 1.0)
    return statistics.median(a / b for a, b in zip(whole.totals, row.totals, strict=True))


def operations_ratio(tokens: int, kept: int, shape: Shape) -> float:
    """The ratio of operations without and with compression."""
    return shape.operations(tokens + TEXT) / shape.operations(kept + TEXT)


def record(row: Row, rows: Sequence[Row], shape: Shape, about: dict[str, Any]) -> dict[str, Any]:
    """A row as the CSV file has it."""
    low, high = _quantiles(row.totals)
    return about | {
        "tokens": row.tokens,
        "retention": row.retention,
        "kept": row.kept,
        "compression_ms": round(1e3 * row.compression, 3),
        "prefill_ms": round(1e3 * row.prefill, 3),
        "total_ms": round(1e3 * row.total, 3),
        "p20_ms": round(1e3 * low, 3),
        "p80_ms": round(1e3 * high, 3),
        "speed_up": round(speed_up(row, rows), 2),
        "speed_up_of_operations": round(operations_ratio(row.tokens, row.kept, shape), 2),
        "kernels_us": "" if row.kernels is None else round(1e6 * row.kernels, 2),
        "kernels_share": "" if row.kernels_share is None else round(row.kernels_share, 6),
    }


def longest_without(shape: Shape, retention: float, wanted: float, most: int = 1 << 20) -> int:
    """Fewest video tokens, in frames of 196, at which the ratio of operations reaches a speed-up.

    Args:
        shape: The decoder's.
        retention: Share kept.
        wanted: The speed-up.
        most: Tokens that are looked at; 0 is returned where they do not suffice.
    """
    each = FRAME[0] * FRAME[1]
    for tokens in range(each, most, each):
        if (
            operations_ratio(tokens, Grid([(tokens // each, *FRAME)]).budgets(retention)[0], shape)
            >= wanted
        ):
            return tokens
    return 0


def write(
    table: Sequence[dict[str, Any]], about: dict[str, Any], shape: Shape, options: Any
) -> None:
    """The CSV file, a page and a picture."""
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    kind = torch.device(options.device).type
    name = f"prefill-{options.llm}-{kind}"
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(table)
    timed = "processor time" if kind == "cpu" and not options.wall else "wall time"
    lines = [
        f"# Prefill of a {options.llm} language model, with and without compression",
        "",
        f"Random weights and embeddings; {about['layers']} of the layers, {about['dtype']}, "
        f"{about['device']}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"{timed}, {options.rounds} interleaved rounds; {TEXT} tokens of text besides. The "
        f"compression is the policy `{about['policy']}` with fresh weights: scores, choice and "
        f"gather. The same attention kernel ({about['attention']}) both ways. Made by "
        f"`bench/prefill.py`.",
        "",
        "| video tokens | kept | compression, ms | prefill, ms | together (p20 to p80) "
        "| speed-up | ratio of operations |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['tokens']:,} | {r['kept']:,} ({r['retention']:.0%}) | {r['compression_ms']:,} | "
        f"{r['prefill_ms']:,} | {r['total_ms']:,} ({r['p20_ms']:,} to {r['p80_ms']:,}) | "
        f"{r['speed_up']} | {r['speed_up_of_operations']} |"
        for r in table
    ]
    alone = [r for r in table if r["retention"] == 1.0 and r["kernels_us"] != ""]
    if alone:
        lines += ["", "The kernels alone, a tenth kept, the question folded before:", ""]
        lines += [
            f"- {r['tokens']:,} video tokens: {r['kernels_us']:,} µs, {r['kernels_share']:.3%} of "
            f"the prefill without compression"
            for r in alone
        ]
    lines += ["", "At a tenth of the tokens the ratio of operations reaches 16 from:", ""]
    for other, own in SHAPES.items():
        if other != "tiny":
            least = longest_without(own, 0.1, 16.0)
            lines.append(f"- {other}: {least:,} video tokens")
    lines += ["", "On GPUs: not measured." if kind == "cpu" else ""]
    (folder / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed (cacovid[viz])")
        return
    draw(table, folder / f"{name}.png", about, shape)


def draw(table: Sequence[dict[str, Any]], path: Path, about: dict[str, Any], shape: Shape) -> None:
    """Speed-up against video tokens: measured, and the ratio of operations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.4), constrained_layout=True)
    each = FRAME[0] * FRAME[1]
    lengths = [each * n for n in range(1, 257)]
    shares = sorted({r["retention"] for r in table if r["retention"] < 1.0})
    for colour, share in zip(("#0072b2", "#e69f00", "#cc79a7", "#009e73"), shares, strict=False):
        own = [r for r in table if r["retention"] == share]
        axis.plot(
            [r["tokens"] for r in own], [r["speed_up"] for r in own], "o-", color=colour,
            label=f"{share:.0%} kept, measured on {about['device']}",
        )  # fmt: skip
        for name, style in (("0.5b", "--"), ("7b", ":")):
            axis.plot(
                lengths,
                [operations_ratio(n, max(1, int(share * n + 1e-9)), SHAPES[name]) for n in lengths],
                style, color=colour, linewidth=1, label=f"{share:.0%}, ratio of operations, {name}",
            )  # fmt: skip
    axis.axhline(16, color="black", linewidth=0.8)
    axis.annotate("16 (published, 10%)", (lengths[0], 16), va="bottom", fontsize=8)
    axis.set(
        xscale="log", yscale="log", xlabel="video tokens", ylabel="speed-up of the prefill",
        title=f"{about['llm']}, {about['layers']} of the layers, compression included",
    )  # fmt: skip
    axis.set_xticks([196, 784, 3136, 12544, 50176], ["196", "784", "3,136", "12,544", "50,176"])
    axis.set_yticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    axis.minorticks_off()
    axis.grid(True, which="both", alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", choices=tuple(SHAPES), default="0.5b")
    parser.add_argument("--layers", type=int, default=0, help="measure fewer layers")
    parser.add_argument("--tokens", type=int, nargs="+", help="video tokens")
    parser.add_argument("--retention", type=float, nargs="+", default=[0.25, 0.1, 0.05])
    parser.add_argument("--policy", choices=("cacovid", "score"), default="score")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--attention", default="default", choices=("default", "flash", "efficient", "math"),
        help="the kernel of torch's attention",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wall", action="store_true", help="wall time on the CPU too")
    parser.add_argument("--out", default=str(RESULTS))
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.layers < 0:
        parser.error("--rounds is at least 1, --layers at least 0")
    if not all(0.0 < r <= 1.0 for r in options.retention):
        parser.error(f"--retention is {options.retention}; expected numbers in (0, 1]")
    return options


def _kernel(name: str, device: torch.device) -> AbstractContextManager[Any]:
    if name == "default":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(
        {
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "math": SDPBackend.MATH,
        }[name]
    )


def _clock(device: torch.device, wall: bool) -> Callable[[], float]:
    if device.type == "cuda":

        def waited() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return waited
    return time.perf_counter if wall else time.process_time


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], cuts[-1]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _line(row: Row, rows: Sequence[Row], shape: Shape) -> str:
    return (
        f"{row.tokens:>7,} tokens, {row.retention:>4.0%} kept: compression "
        f"{1e3 * row.compression:9.2f} ms, prefill {1e3 * row.prefill:10.2f} ms, "
        f"{speed_up(row, rows):6.2f} times (ratio of operations "
        f"{operations_ratio(row.tokens, row.kept, shape):.1f})"
    )


def _kernels_line(row: Row, layers: int) -> str:
    assert row.kernels is not None
    return (
        f"{row.tokens:>7,} tokens: score, selection and gather of a tenth in the kernels alone "
        f"{1e6 * row.kernels:.1f} us, {row.kernels_share:.3%} of the prefill of {layers} layers"
    )


if __name__ == "__main__":
    main()
