"""How long each method takes to choose tokens: one video of random features, on the CPU.

    OMP_NUM_THREADS=1 python bench/compression.py
    OMP_NUM_THREADS=1 python bench/compression.py --tokens 6272 --methods divprune cdpruner

Features in bfloat16, as a language model of that width reads them, frames of 14 x 14 tokens; every
place keeps a share of its own of what the frame before showed there, so that there is something
still and something moving. Methods are timed from the prompt to their selection (merged embeddings
included); what they need of a model (received attention, keys) is random and given, and the pieces
that compute it stand in rows of their own. Time is the processor's, of one thread, unless `--wall`
is given, so that a busy machine counts less; every round times the features' product with 128
columns and the method, in turn, and ratios are medians of the rounds' own.

Each method runs in a copy of the process, which ends when it has used more than `--limit` seconds
of processor time or `--memory` GB of its own memory; the table then says so. Lines that are there
already stay (`--methods` and `--tokens` measure some again). Writes `compression-cpu.csv`, `.md`
and `.png`.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import platform
import resource
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacovid import methods
from cacovid.benchmark import self_attention as paper
from cacovid.methods import HybridMethod, PolicyMethod
from cacovid.models.attention_scores import last_query_attention, received_attention
from cacovid.models.column_means import column_means
from cacovid.policies import (
    CrossAttentionConfig,
    CrossAttentionPolicy,
    SurpriseConfig,
    SurprisePolicy,
)
from cacovid.types import Grid, Prompt

RESULTS = Path(__file__).resolve().parent / "results"
SIDE = 14
COLUMNS = 128
#: Short calls are repeated for so many seconds.
LEAST = 0.02
#: Of LLaVA-OneVision's vision tower: heads, patches of a frame, width of a head.
TOWER = (16, 729, 72)
#: Layers of the language model that methods inside it believe to run in.
DEPTH = 28
FIELDS = (
    "method", "tokens", "hidden", "retention", "kept", "rounds", "ms", "p20_ms", "p80_ms",
    "products", "memory_mb", "note",
)  # fmt: skip

#: What is not measured, and why.
LEFT_OUT = {
    "oracle": "it is told the truth of the embedded task",
    "attention": "from layer 1 on the language model runs up to the layer, which costs what a "
    "prefill costs there (`bench/prefill.py`); layer 0 is measured",
}


def fresh(kind: str, hidden: int) -> Any:
    """A policy of random weights: `cacovid` or `score`."""
    if kind == "score":
        return SurprisePolicy(SurpriseConfig(hidden_size=hidden)).requires_grad_(False)
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=hidden)).requires_grad_(False)


def registered(name: str, prompt: Prompt, retention: float) -> Callable[[], Any]:
    """A call of a method, policies with random weights."""
    hidden = prompt.embeds.shape[1]
    if name == "cacovid:self-attention":
        policy = paper.policy_of(hidden, prompt.embeds.dtype, prompt.embeds.device)
        method: Any = PolicyMethod(policy)
    elif name in ("cacovid", "score"):
        method = PolicyMethod(fresh(name, hidden))
    elif name == "hybrid":
        method = HybridMethod(fresh("cacovid", hidden), fresh("score", hidden))
    else:
        method = methods.get(name)
    return lambda: method(prompt, retention)


def language_layer(hidden: int) -> Any:
    """A LLaVA-OneVision whose language model has one attention of the width's usual shape.

    Its MLP is never run, and is small.
    """
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    heads, key_heads, _ = paper.LAYERS.get(hidden, (hidden // 16, 1, 0))
    text = Qwen2Config(
        vocab_size=16, hidden_size=hidden, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=key_heads,
        max_position_embeddings=1 << 17, bos_token_id=None, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        image_size=28, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=1, video_token_index=2,
        image_grid_pinpoints=[[28, 28]],
    )  # fmt: skip
    model = LlavaOnevisionForConditionalGeneration(config).to(torch.bfloat16)
    return model.eval().requires_grad_(False)


def first_layer(queries: Any) -> Callable[[Prompt, float], Callable[[], Any]]:
    """`attention:0:QUERIES` with what it needs: norm, q and k of all rows, the asking rows."""

    def make(prompt: Prompt, retention: float) -> Callable[[], Any]:
        model = language_layer(prompt.embeds.shape[1])
        method: Any = methods.get(f"attention:0:{queries}")

        def run() -> Any:
            prompt.extras[method.key] = received_attention(model, prompt, 0, queries)
            return method(prompt, retention)

        return run

    return make


def inside(name: str) -> Callable[[Prompt, float], Callable[[], Any]]:
    """What an in-LLM method does between the layers; hidden states go through unchanged."""

    def make(prompt: Prompt, retention: float) -> Callable[[], Any]:
        decoder = language_layer(prompt.embeds.shape[1]).model.language_model
        attention = decoder.layers[0].self_attn
        cosine, sine = decoder.rotary_emb(prompt.embeds[None], prompt.position_ids[None])

        def run() -> Any:
            hook: Any = methods.get(name)(prompt, retention)
            hook.begin(DEPTH)
            hidden, rows = prompt.embeds, torch.arange(len(prompt.embeds))
            for layer in range(DEPTH):

                def received(hidden: Tensor = hidden, rows: Tensor = rows) -> Tensor:
                    rotary = (cosine[:, rows], sine[:, rows])
                    return last_query_attention(attention, hidden[None], rotary)

                reduced = hook.before(layer, hidden, received if layer else None)
                if reduced is not None:
                    hidden, rows = reduced.hidden, rows[reduced.rows]
            return hook.selection

        return run

    return make


def vision_attention(prompt: Prompt, retention: float) -> Callable[[], Any]:
    """Received attention in one layer of the vision tower, from its q and k."""
    frames = prompt.grid.num_frames
    heads, patches, width = TOWER
    query, key = (torch.randn(frames, heads, patches, width).bfloat16() for _ in range(2))
    return lambda: column_means(query, key, width**-0.5)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        make: Makes the call that is timed, for a prompt and a retention.
        extras: Names of extras that are given.
        note: What the reader has to know.
    """

    make: Callable[[Prompt, float], Callable[[], Any]]
    extras: tuple[str, ...] = ()
    note: str = ""


def plain(name: str, *extras: str, note: str = "") -> Row:
    """The line of a method that chooses before the language model."""
    return Row(lambda prompt, retention: registered(name, prompt, retention), extras, note)


ROWS: dict[str, Row] = {
    "random": plain("random"),
    "uniform": plain("uniform"),
    "fewer_frames": plain("fewer_frames"),
    "cacovid": plain("cacovid", note="random weights"),
    "score": plain("score", note="random weights"),
    "hybrid": plain("hybrid", note="random weights"),
    "cacovid:self-attention": plain("cacovid:self-attention", note="random weights"),
    "evs": plain("evs"),
    "vidcom2": plain("vidcom2"),
    "divprune": plain("divprune"),
    "dpc_knn": plain("dpc_knn"),
    "cdpruner": plain("cdpruner"),
    "prunevid": plain("prunevid"),
    "holitom": plain("holitom", note="without vision attention: by density peaks"),
    "holitom, attention given": plain("holitom", "vision_attention"),
    "fastvid": plain("fastvid", note="without pooling attention"),
    "visionzip": plain(
        "visionzip", "vision_attention", "vision_keys", note="attention and keys given"
    ),
    "vision attention": Row(
        vision_attention, note="piece of visionzip and holitom: column means from q and k"
    ),
    "attention:0:last": Row(first_layer("last"), note="layer 0 of the 7B shape"),
    "attention:0:question": Row(first_layer("question"), note="layer 0 of the 7B shape"),
    "fastv": Row(inside("fastv"), note="its own piece: one row of attention, and the cut"),
    "framefusion": Row(
        inside("framefusion"), note="its own piece: merging, one row of attention, the cut"
    ),
}


def make_prompt(tokens: int, hidden: int, extras: Sequence[str] = ()) -> Prompt:
    """A video of random features and a question of 46 tokens.

    With `x` of the frame before and fresh noise `e`, a place shows `s x + sqrt(1 - s^2) e`, its `s`
    drawn once between 0 and 1.

    Raises:
        ValueError: for a number of tokens that is no multiple of a frame's.
    """
    each = SIDE * SIDE
    if tokens < each or tokens % each:
        raise ValueError(f"tokens is {tokens}; expected a multiple of {each}, at least one frame")
    torch.manual_seed(0)
    grid = Grid([(tokens // each, SIDE, SIDE)])
    begin = paper.TEXT[0]
    embeds = torch.empty(tokens + sum(paper.TEXT), hidden, dtype=torch.bfloat16).normal_()
    share = torch.rand(each, 1)
    shown = torch.randn(each, hidden)
    for frame in embeds[begin : begin + tokens].split(each):
        frame.copy_(shown)
        shown = share * shown + (1 - share.square()).sqrt() * torch.randn(each, hidden)
    prompt = paper.prompt_of(grid, embeds)
    shapes = {"vision_attention": (tokens,), "vision_keys": (tokens, TOWER[0] * TOWER[2])}
    prompt.extras.update({name: torch.rand(shapes[name]) for name in extras})
    return prompt


def measure(name: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times one line in this process, which `limit` may end."""
    row = ROWS[name]
    clock = time.perf_counter if options.wall else time.process_time
    hidden, retention = options.hidden, options.retention
    with torch.no_grad():
        row.make(make_prompt(2 * SIDE * SIDE, hidden, row.extras), retention)()  # warms up
        prompt = make_prompt(tokens, hidden, row.extras)
        run = row.make(prompt, retention)
        rows = prompt.video_embeds
        columns = torch.randn(hidden, COLUMNS).to(rows.dtype)
        before = _peak()
        limit(options.limit, options.memory)
        ways = (lambda: rows @ columns, run)
        taken: list[tuple[float, ...]] = []
        used = 0.0
        while len(taken) < options.rounds and used * (1 + 1 / max(1, len(taken))) <= options.limit:
            taken.append(tuple(timed(way, clock) for way in ways))
            used += taken[-1][-1]
    own = sorted(1e3 * t for _, t in taken)
    return {
        "rounds": len(taken),
        "ms": _short(statistics.median(own)),
        "p20_ms": _short(own[len(own) // 5]),
        "p80_ms": _short(own[4 * len(own) // 5]),
        "products": _short(statistics.median(t / product for product, t in taken)),
        "memory_mb": round(max(0, _peak() - before) / 1024),
        "note": row.note,
    }


def timed(way: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds of one call, the mean of as many as last `LEAST` together."""
    calls, begin = 0, clock()
    while True:
        way()
        calls += 1
        if (passed := clock() - begin) >= LEAST:
            return passed / calls


def limit(seconds: float, gigabytes: float) -> None:
    """Ends this process when it has used so much more processor time or memory."""
    used = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (used, used + 5))
    with open("/proc/self/statm") as file:
        data = int(file.read().split()[5]) * resource.getpagesize()
    most = data + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def in_its_own_process(name: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times one line in a copy of this process; a note says where it was ended.

    Raises:
        RuntimeError: if it ended in another way.
    """
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)
        try:
            there.send(measure(name, tokens, options))
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            there.send({"note": f"over {options.memory:g} GB"})

    process = fork.Process(target=work)
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        process.join()
        if process.exitcode not in (-signal.SIGXCPU, -signal.SIGKILL):
            raise RuntimeError(f"{name} at {tokens:,} tokens ended by itself") from None
        return {"note": f"over {options.limit:,g} s"}
    process.join()
    return found


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures and writes; returns the lines of the CSV file."""
    options = _options(arguments)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compression-cpu.csv"
    lines: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    for tokens in options.tokens:
        (kept,) = Grid([(tokens // (SIDE * SIDE), SIDE, SIDE)]).budgets(options.retention)
        for name in options.methods:
            fixed = {"method": name, "tokens": tokens, "hidden": options.hidden,
                     "retention": options.retention, "kept": kept}  # fmt: skip
            found = fixed | in_its_own_process(name, tokens, options)
            line = {field: str(found.get(field, "")) for field in FIELDS}
            print("  ".join(line.values()), flush=True)
            key = ("method", "tokens", "hidden", "retention")
            lines = [old for old in lines if any(old[k] != line[k] for k in key)] + [line]
            lines.sort(key=lambda old: (int(old["tokens"]), list(ROWS).index(old["method"])))
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(lines)
    (folder / "compression-cpu.md").write_text(page(lines, options))
    draw(lines, folder / "compression-cpu.png", options)
    return lines


def page(lines: Sequence[dict[str, str]], options: argparse.Namespace) -> str:
    """The page: one line for each method, lengths side by side."""
    lengths = sorted({int(line["tokens"]) for line in lines})
    by = {(line["method"], int(line["tokens"])): line for line in lines}
    clock = "wall" if options.wall else "processor"
    head = ["method"]
    for tokens in lengths:
        head += [f"{tokens:,}: seconds", "products", "MB"]
    out = [
        "# How long choosing tokens takes on the CPU",
        "",
        f"One video of random features, D = {options.hidden:,}, bfloat16, "
        f"{options.retention:.0%} kept; our implementations; {clock} time of one thread "
        f"(median of up to {options.rounds} rounds), torch {torch.__version__}, "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}. The machine was shared "
        f"with other work: compare ratios. *Products*: times the product of the features with "
        f"{COLUMNS} columns, timed in turn with the method. *MB*: "
        f"greatest memory beyond the features. A line ends at {options.limit:,g} s of processor "
        f"time or {options.memory:g} GB. Made by `python bench/compression.py`; on GPUs: not "
        f"measured.",
        "",
        f"| {' | '.join([*head, ''])} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name, row in ROWS.items():
        if not any((name, tokens) in by for tokens in lengths):
            continue
        cells = [f"`{name}`" if " " not in name else name]
        for tokens in lengths:
            line = by.get((name, tokens), {})
            if line.get("ms"):
                figures = (float(line["ms"]) / 1e3, float(line["products"]))
                cells += [*map(_figure, figures), f"{int(line['memory_mb']):,}"]
            else:
                cells += [line.get("note", "–"), "", ""]
        out.append(f"| {' | '.join([*cells, row.note])} |")
    out += ["", "Not measured:", ""]
    out += [f"- `{name}`: {reason}" for name, reason in LEFT_OUT.items()]
    missing = {n: [t for t in lengths if (n, t) not in by] for n in ROWS}
    out += [
        f"- `{name}` at {' and '.join(f'{t:,}' for t in tokens)} tokens: not in this run"
        for name, tokens in missing.items()
        if tokens
    ]
    return "\n".join(out) + "\n"


def draw(lines: Sequence[dict[str, str]], path: Path, options: argparse.Namespace) -> None:
    """Times of the bare product, by method; what was ended is a note."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lengths = sorted({int(line["tokens"]) for line in lines})
    shown = [line for line in lines if line["ms"]]
    first = {line["method"]: float(line["products"]) for line in reversed(shown)}
    names = sorted({line["method"] for line in lines}, key=lambda n: (first.get(n, math.inf), n))
    figure, axis = plt.subplots(figsize=(8.5, 0.33 * len(names) + 1.6), layout="constrained")
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    for number, tokens in enumerate(lengths):
        colour = colours[number % len(colours)]
        own = {line["method"]: line for line in lines if int(line["tokens"]) == tokens}
        there = [name for name in names if name in own]
        done = [name for name in there if own[name]["ms"]]
        axis.plot(
            [float(own[name]["products"]) for name in done], [names.index(name) for name in done],
            "os"[number % 2], color=colour, label=f"{tokens:,} tokens", ms=6,
        )  # fmt: skip
        for name in set(there) - set(done):
            place = (1.0, (names.index(name) + 0.5) / len(names))
            axis.annotate(
                own[name]["note"], place, xycoords="axes fraction", ha="right", va="center",
                fontsize=7, color=colour,
            )  # fmt: skip
    axis.set(
        xscale="log", xlabel=f"times the product of the features with {COLUMNS} columns",
        ylim=(-0.5, len(names) - 0.5),
        title=f"Choosing {options.retention:.0%} of random features, D = {options.hidden:,}, one "
        f"thread of a CPU",
    )  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.grid(True, axis="x", alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[6272, 50176])
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--retention", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of one line")
    parser.add_argument("--memory", type=float, default=8.0, help="GB of one line")
    parser.add_argument("--wall", action="store_true", help="wall time in place of processor time")
    parser.add_argument("--out", default=str(RESULTS))
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.limit <= 0 or options.memory <= 0:
        parser.error("--rounds is at least 1; --limit and --memory are above 0")
    if not 0.0 < options.retention <= 1.0:
        parser.error(f"--retention is {options.retention}; expected a number in (0, 1]")
    wrong = [tokens for tokens in options.tokens if tokens < 1 or tokens % (SIDE * SIDE)]
    if wrong:
        parser.error(f"--tokens is {wrong[0]}; expected a multiple of {SIDE * SIDE}")
    return options


def _peak() -> int:
    """The greatest resident memory of this process so far, in KB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
