"""More frames for the same tokens: what compression buys, on the embedded task.

    python bench/frames.py --questions 400

A budget of tokens is spent on one, two and four times the frames, in two ways. *More of the clip*:
4, 8 and all 16 frames of each clip, evenly spaced; the more are read, the more of what happens in
between is seen. *A higher rate*: the clip as if read at one, two and four times its rate, every
frame held so often (16, 32 and 64 frames, each through the video codec); nothing new is seen, and
uncompressed prompts are up to four times as long as any that the embedded model has learned from.
Each goes on where it was stopped (`runs/frames`, or `--runs`). Methods in which chance plays are
drawn three times. Writes `frames-tiny.md`, `.json` and `.png`. Synthetic task; no public benchmark
is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.commands.loading import load_model
from cacovid.commands.progress import steps_bar
from cacovid.evaluation.answers import Answerer
from cacovid.evaluation.choosers import choosers, with_draws
from cacovid.evaluation.compare import UNCOMPRESSED, Comparison, Evaluator, Result
from cacovid.evaluation.records import Records
from cacovid.evaluation.results import accuracy_text, markdown, result_rows
from cacovid.methods.beside import policies_beside
from cacovid.synthetic import world
from cacovid.synthetic.tiny.data import through_h264
from cacovid.train.data import TrainingSample, embedded_samples, read_sample_frames
from cacovid.train.encoding import FrameReader, SampleEncoder
from cacovid.train.rewards import freeze

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "frames"
RESULTS = ROOT / "bench" / "results"
METHODS = (
    "cacovid", "score", "cdpruner", "divprune", "vidcom2", "fewer_frames", "random", "uniform",
    "attention:2:question",
)  # fmt: skip
PER_SCENE = 8
EACH = world.CELLS**2


@dataclass(frozen=True)
class Reading:
    """One way to read clips.

    Args:
        part: Which comparison it belongs to.
        frames: How many frames a clip has then.
        read: Reads them.
    """

    part: str
    frames: int
    read: FrameReader

    @property
    def tokens(self) -> int:
        """Video tokens of a clip."""
        return self.frames * EACH


#: Title and what it shows, by part.
PARTS = {
    "more": ("More of the clip", "4, 8 and 16 frames of each clip, evenly spaced"),
    "rate": ("A higher rate", "all 16 frames held once, twice and four times: nothing new is seen"),
}


def held_frames(sample: TrainingSample, times: int) -> np.ndarray:
    """The clip's frames, each held so often, through H.264: uint8 `[16 * times, H, W, 3]`."""
    assert sample.scene is not None
    return through_h264(np.repeat(sample.scene.make().rendering.frames, times, axis=0))


def readings(base: int = 4, times: Sequence[int] = (1, 2, 4)) -> list[Reading]:
    """Both comparisons.

    Args:
        base: Frames of the first at one time.
        times: Multiples of the frames.
    """
    more = [
        Reading("more", base * n, partial(read_sample_frames, max_frames=base * n)) for n in times
    ]
    rate = [Reading("rate", world.CLIP_FRAMES * n, partial(held_frames, times=n)) for n in times]
    return [*more, *rate]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--budget", type=int, nargs="+", default=[144, 57], help="tokens kept")
    parser.add_argument("--split", default="test", choices=("test", "shifted", "validation"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where answers are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.questions < 1 or options.draws < 1 or min(options.budget) < 1:
        parser.error("--questions, --draws and --budget are at least 1")
    qa = load_model("tiny", dtype="bfloat16")
    rows = measure(qa, readings(), options)
    write(rows, options, qa.model.config.get_text_config().max_position_embeddings)
    return 0


def measure(
    qa: Any, wanted: Sequence[Reading], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of all ways to read, each with its `part`, `frames` and `budget`.

    A budget that a clip does not exceed is the uncompressed row.
    """
    scenes = -(-options.questions // PER_SCENE)
    samples = embedded_samples(options.split, options.seed, scenes, PER_SCENE)
    asked = list(samples)[: options.questions]
    freeze(qa.model)
    out = []
    for reading in wanted:
        kept = {budget / reading.tokens: budget for budget in options.budget}
        retentions = [r for r in sorted(kept, reverse=True) if r < 1.0]
        comparison = _answer(qa, reading, asked, retentions, options)
        for row in result_rows(comparison):
            place = {"part": reading.part, "frames": reading.frames}
            if row["method"] != UNCOMPRESSED:
                out.append({**row, **place, "budget": kept[row["retention"]]})
                continue
            out.append({**row, **place, "budget": None})
            out += [{**row, **place, "budget": b} for r, b in kept.items() if r >= 1.0]
    return out


def _answer(
    qa: Any,
    reading: Reading,
    asked: Sequence[TrainingSample],
    retentions: Sequence[float],
    options: argparse.Namespace,
) -> Comparison:
    drawn = with_draws(choosers(options.methods, qa.model), options.draws)
    chosen = [chooser for own in drawn.values() for chooser in own]
    needs = frozenset[str]().union(*(chooser.needs for chooser in chosen))
    encoder = SampleEncoder(qa.model, qa.processor, reading.read, 2, needs)
    answerer = Answerer(qa.model, qa.processor.tokenizer)
    evaluator = Evaluator(encoder, answerer, chosen, retentions, options.seed)
    place = Path(qa.model.name_or_path)
    folders = [place, *(place / folder for folder in policies_beside(place).values())]
    weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    header = {
        "data": f"embedded/{options.split}/{options.seed}",
        "conditions": evaluator.conditions,
        "weights": {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in weights},
    }
    records = Records(options.runs / f"{options.split}-{reading.part}-{reading.frames}", header)
    records.mend()
    done = records.read()
    with steps_bar(f"Answering from {reading.frames} frames", len(asked)) as bar:
        answered = len(done)

        def keep(result: Result) -> None:
            nonlocal answered
            answered += 1
            records.add(result)
            bar.step(min(answered, len(asked)), None)

        found = evaluator.run(asked, done=done, on_result=keep)
    names = {name: [chooser.name for chooser in own] for name, own in drawn.items()}
    there = [found[sample.id] for sample in asked]
    return Comparison.of(evaluator.conditions, there).pooled(names)


def write(rows: Sequence[dict[str, Any]], options: argparse.Namespace, limit: int) -> None:
    """The page, the figures and the picture.

    Args:
        rows: As `measure` returns them.
        options: What was asked for.
        limit: Positions that the model's configuration names.
    """
    longest = world.CLIP_TOKENS
    lines = [
        "# More frames for the same tokens",
        "",
        f"Synthetic task, {options.questions:,} {options.split} questions; no public benchmark "
        f"run. Made by `python bench/frames.py --questions {options.questions}`. Accuracy in "
        f"percent, model in bfloat16, with half of the 95% interval (bootstrap over videos); "
        f"methods in which chance plays: means of {options.draws} draws. The embedded model has "
        f"learned from clips of {world.CLIP_FRAMES} frames, {longest} tokens, and its "
        f"configuration names {limit:,} positions; kept tokens stand at their original positions, "
        f"so that a pruned prompt of more frames has positions beyond {longest} too.",
        "",
    ]
    for part, (title, note) in PARTS.items():
        own = [row for row in rows if row["part"] == part]
        counts = sorted({row["frames"] for row in own})
        if not own:
            continue
        lines += [f"## {title}", "", f"{note}.", ""]
        columns = ["tokens kept", "method"]
        columns += [f"{count} frames ({count * EACH:,} tokens)" for count in counts]
        names = dict.fromkeys(row["method"] for row in own if row["method"] != UNCOMPRESSED)
        cells = [["all", UNCOMPRESSED, *_cells(own, counts, None, UNCOMPRESSED)]]
        cells += [
            [str(budget), name, *_cells(own, counts, budget, name)]
            for budget in options.budget
            for name in names
        ]
        lines.append(markdown(columns, cells))
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"questions": options.questions, "split": options.split, "results": list(rows)}
    (options.out / "frames-tiny.json").write_text(json.dumps(facts, indent=1) + "\n")
    page = "\n".join(lines)
    (options.out / "frames-tiny.md").write_text(page)
    draw(rows, options, options.out / "frames-tiny.png")
    print(page)


def find(
    rows: Sequence[Mapping[str, Any]], frames: int, budget: int | None, method: str
) -> Mapping[str, Any] | None:
    """The row of a method at a budget; the uncompressed one where the budget holds all tokens."""
    own = [row for row in rows if row["frames"] == frames and row["budget"] == budget]
    by = {row["method"]: row for row in own}
    return by.get(method) or by.get(UNCOMPRESSED)


def _cells(
    rows: Sequence[Mapping[str, Any]], counts: Sequence[int], budget: int | None, method: str
) -> list[str]:
    found = [find(rows, frames, budget, method) for frames in counts]
    return ["–" if row is None else accuracy_text(row) for row in found]


def draw(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace, path: Path) -> None:
    """Accuracy over frames, a panel for each way to read and budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    budgets = options.budget
    figure, axes = plt.subplots(
        len(PARTS), len(budgets), figsize=(5.2 * len(budgets) + 2, 7.2), layout="constrained",
        sharey=True, squeeze=False,
    )  # fmt: skip
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != UNCOMPRESSED))
    for line, (part, (title, _)) in zip(axes, PARTS.items(), strict=True):
        own = [row for row in rows if row["part"] == part]
        counts = sorted({row["frames"] for row in own})
        for axis, budget in zip(line, budgets, strict=True):
            full = [find(own, frames, None, UNCOMPRESSED) for frames in counts]
            axis.plot(
                counts, [100 * row["accuracy"] for row in full if row], "k:", marker="*", ms=9,
                label="uncompressed (all tokens)",
            )  # fmt: skip
            for number, name in enumerate(names):
                found = {f: find(own, f, budget, name) for f in counts}
                points = [(f, 100 * row["accuracy"]) for f, row in found.items() if row]
                axis.plot(
                    *zip(*points, strict=True), label=name, marker="os^Dv<>Pp"[number % 9], ms=5,
                    color=plt.get_cmap("tab10")(number % 10),
                )  # fmt: skip
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts, [str(count) for count in counts])
            axis.minorticks_off()
            axis.set_title(f"{title}: {budget} tokens kept", fontsize=10)
            axis.set_xlabel("frames read")
            axis.grid(True, alpha=0.25)
        line[0].set_ylabel("accuracy, %")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle("Embedded task (synthetic; no public benchmark run)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
