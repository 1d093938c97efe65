"""Trains SCORE on the embedded task with and without its parts, and compares.

    python bench/score_evidence.py train --seeds 0 1 2
    python bench/score_evidence.py evaluate --split test shifted
    python bench/score_evidence.py report

`train` runs `cacovid train` for each run and seed, in `runs/score-evidence/NAME-SEED`, on one
thread; stopped ones go on, finished ones are left alone. `stored` is
`bench/configs/tiny-score.yaml`; `no-curriculum` learns from real videos alone, for as many steps;
`no-surprise` leaves the residual out of the state; `surplus` is the other reading of the paper's
advantage. `evaluate` puts all finished runs beside the default policy, training-free methods and
the oracles by `cacovid eval`, in `runs/score-evidence/eval-SPLIT`, and goes on where it was
stopped. `report` writes `results/score-tiny.md`, `.json` and `.png`. Runs of one model only: take
the folder away when the embedded model is another. Everything is of the synthetic task; no public
benchmark is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from training_runs import (
    RESULTS,
    ROOT,
    finished,
    merged,
    read_log,
    run_cacovid,
    smooth,
    train_run,
)

from cacovid.evaluation.compare import Comparison, Result
from cacovid.evaluation.records import HEADER, Records
from cacovid.evaluation.results import accuracy_text, markdown, result_rows
from cacovid.evaluation.statistics import Bootstrap
from cacovid.synthetic.questions import QUESTION_TYPES
from cacovid.train.advantages import Reading

RUNS = ROOT / "runs" / "score-evidence"
BASE = ROOT / "bench" / "configs" / "tiny-score.yaml"
RETENTIONS = (0.25, 0.2, 0.15, 0.1, 0.05)
BASELINES = ("cacovid", "cdpruner", "divprune", "vidcom2", "random", "uniform")
BLIND = ("blind-oracle", "blind-oracle-in-turn")
ORACLES = ("oracle", *BLIND)

#: The share of tokens, and of the uncompressed accuracy, that the paper's claim is about.
AT, WANTED = 0.1, 0.995

Config = dict[str, Any]


def videos_alone(config: Config) -> Config:
    """The last stage for as many steps as all stages have."""
    steps = sum(stage["steps"] for stage in config["stages"])
    return {**config, "stages": [{**config["stages"][-1], "steps": steps}]}


def other_reading(config: Config) -> Config:
    """The reading of the advantage that the configuration does not take."""
    now = config["score"].get("reading", get_args(Reading)[0])
    (other,) = (reading for reading in get_args(Reading) if reading != now)
    return merged(config, {"score": {"reading": other}})


#: What each run changes in the base configuration, and how pages call it.
CHANGES: dict[str, tuple[str, Callable[[Config], Config]]] = {
    "stored": ("SCORE as stored", lambda config: config),
    "no-curriculum": ("without curriculum", videos_alone),
    "no-surprise": (
        "without surprise",
        lambda config: merged(config, {"policy": {"settings": {"surprise": False}}}),
    ),
    "surplus": ("advantage by surplus", other_reading),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--runs", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    train.add_argument("--steps", type=int, help="steps of every run, all stages together")
    train.add_argument("--held-out", type=int, help="questions of the greedy evaluation")
    evaluate = commands.add_parser("evaluate")
    evaluate.add_argument("--split", nargs="+", default=["test"], choices=("test", "shifted"))
    evaluate.add_argument("--questions", type=int, default=1000)
    evaluate.add_argument("--retention", nargs="+", type=float, default=list(RETENTIONS))
    evaluate.add_argument("--draws", type=int, default=3, help="of methods in which chance plays")
    report = commands.add_parser("report")
    report.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.command == "train":
        for name in args.runs:
            for seed in args.seeds:
                train_run(configuration(name, seed, args.steps, args.held_out))
    elif args.command == "evaluate":
        for split in args.split:
            _evaluate(split, args.questions, args.retention, args.draws)
    else:
        write_report(args.out)
    return 0


def configuration(
    name: str, seed: int, steps: int | None = None, held_out: int | None = None
) -> Config:
    """The configuration of a run.

    Args:
        name: Out of `CHANGES`.
        seed: Of the training.
        steps: All stages together, shared out as the base does; None: as the base has them.
        held_out: Questions of the greedy evaluation; None: as the base has them.
    """
    config = CHANGES[name][1](yaml.safe_load(BASE.read_text()))
    if steps is not None:
        total = sum(stage["steps"] for stage in config["stages"])
        config["stages"] = [
            {**stage, "steps": max(1, round(steps * stage["steps"] / total))}
            for stage in config["stages"]
        ]
    changes: Config = {"output": str(RUNS / f"{name}-{seed}"), "training": {"seed": seed}}
    if held_out is not None:
        changes["evaluation"] = {"questions": held_out}
    return merged(config, changes)


def _evaluate(split: str, questions: int, retentions: Sequence[float], draws: int) -> None:
    policies = [str(folder / "policy") for folder in finished(RUNS)]
    if not policies:
        raise SystemExit(f"no finished run in {RUNS}; train first")
    told = run_cacovid(
        "eval", "--embedded", "--split", split, "--limit", str(questions),
        "--methods", *policies, *BASELINES, *ORACLES, "--retention", *map(str, retentions),
        "--draws", str(draws), "--timed", "0", "--dtype", "bfloat16",
        "--output", str(RUNS / f"eval-{split}"),
    )  # fmt: skip
    print(told, flush=True)


@dataclass
class Evaluated:
    """What `evaluate` found on one set.

    Args:
        split: The set.
        conditions: `(method, retention)` of the replies, the first uncompressed.
        results: Of the questions.
    """

    split: str
    conditions: list[tuple[str, float]]
    results: list[Result]

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """Reads a folder that `cacovid eval` wrote."""
        header = json.loads((folder / HEADER).read_text())
        results = list(Records(folder, header).read().values())
        conditions = [(name, float(retention)) for name, retention in header["conditions"]]
        return cls(folder.name.removeprefix("eval-"), conditions, results)

    @property
    def retentions(self) -> list[float]:
        """Shares kept, greatest first."""
        return sorted({retention for _, retention in self.conditions[1:]}, reverse=True)

    @property
    def kinds(self) -> dict[str, int]:
        """Question types, and how many questions there are of each."""
        kinds = [result.kind for result in self.results]
        return {kind: kinds.count(kind) for kind in QUESTION_TYPES if kind in kinds}

    def comparison(self, kinds: Sequence[str]) -> Comparison:
        """Questions of some types; seeds of a run, and draws of a method, are one row."""
        own = [result for result in self.results if result.kind in kinds]
        return Comparison.of(self.conditions, own).pooled(groups(self.conditions))


def groups(conditions: Sequence[tuple[str, float]]) -> dict[str, list[str]]:
    """What tables call a row -> the methods that it is the mean of; runs come first."""
    found: dict[str, list[str]] = {name: [] for name in CHANGES}
    for method in dict.fromkeys(name for name, _ in conditions[1:]):
        name, _, seed = Path(method).parent.name.rpartition("-")
        own = name in CHANGES and seed.isdigit()
        found.setdefault(name if own else method.partition(" (draw ")[0], []).append(method)
    return {name: members for name, members in found.items() if members}


def kept_accuracy(comparison: Comparison, method: str, retention: float) -> dict[str, float]:
    """The share of the uncompressed accuracy that is kept, with its 95% interval (paired)."""
    own, full = comparison.find(method, retention).marks, comparison.conditions[0].marks
    drawn = Bootstrap(comparison.videos)
    ratios = drawn.means(own) / drawn.means(full)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return {"kept": float(np.mean(own) / np.mean(full)), "low": float(low), "high": float(high)}


def served(evaluated: Evaluated, retention: float = AT) -> dict[str, dict[str, Any]]:
    """What the best question-blind oracle keeps of each type's accuracy, at one share.

    Returns:
        By type: `kept` with its interval, the `oracle`, and whether it keeps `WANTED` (`served`).
    """
    out = {}
    for kind in evaluated.kinds:
        comparison = evaluated.comparison([kind])
        found = {name: kept_accuracy(comparison, name, retention) for name in BLIND}
        best = max(found, key=lambda name: found[name]["kept"])
        out[kind] = {**found[best], "oracle": best, "served": found[best]["kept"] >= WANTED}
    return out


def write_report(out: Path) -> None:
    """Writes the page, the figures and the picture."""
    sets = [Evaluated.read(path.parent) for path in sorted(RUNS.glob(f"eval-*/{HEADER}"))]
    if not sets:
        raise SystemExit(f"nothing evaluated in {RUNS}; evaluate first")
    sets.sort(key=lambda evaluated: evaluated.split != "test")
    logs = {folder.name: read_log(folder) for folder in finished(RUNS)}
    facts = {evaluated.split: facts_of(evaluated) for evaluated in sets}
    out.mkdir(parents=True, exist_ok=True)
    (out / "score-tiny.json").write_text(json.dumps({**facts, "curves": logs}, indent=1) + "\n")
    page = "\n".join([_head(sets), *(_section(evaluated) for evaluated in sets)])
    (out / "score-tiny.md").write_text(page)
    draw_curves(logs, out / "score-tiny.png")
    print(page)


def type_groups(evaluated: Evaluated) -> dict[str, list[str]]:
    """The types by the generator's label."""
    kinds = list(evaluated.kinds)
    return {
        "all": kinds,
        "question-independent": [kind for kind in kinds if not QUESTION_TYPES[kind]],
        "question-dependent": [kind for kind in kinds if QUESTION_TYPES[kind]],
    }


def facts_of(evaluated: Evaluated) -> dict[str, Any]:
    """All figures of a set, for the JSON file."""
    rows = {
        name: result_rows(evaluated.comparison(kinds))
        for name, kinds in type_groups(evaluated).items()
        if kinds
    }
    return {
        "questions": len(evaluated.results),
        "types": evaluated.kinds,
        "rows": rows,
        "best_blind_oracle": served(evaluated) if AT in evaluated.retentions else {},
    }


def _head(sets: Sequence[Evaluated]) -> str:
    runs = {name for evaluated in sets for name in groups(evaluated.conditions)} & set(CHANGES)
    told = "; ".join(f"*{name}*: {CHANGES[name][0]}" for name in CHANGES if name in runs)
    return (
        "# SCORE on the embedded task\n\n"
        "Synthetic task; no public benchmark run. Made by `python bench/score_evidence.py train`, "
        "`evaluate` and `report`. Accuracy in percent, model in bfloat16, with half of the 95% "
        "interval (bootstrap over videos of the marks averaged over seeds or draws), and in "
        "brackets the least and greatest seed or draw. "
        f"{told}. The oracles know the scene: *oracle* the asked-about object, *blind-oracle* "
        "random tokens of any object, *blind-oracle-in-turn* every object's best token in turn; "
        "they bound what a question-aware and a question-blind choice can reach.\n\n"
        "![learning curves](score-tiny.png)\n"
    )


def _section(evaluated: Evaluated) -> str:
    parts = [f"## {evaluated.split}: {len(evaluated.results):,} questions", ""]
    for name, kinds in type_groups(evaluated).items():
        if not kinds:
            parts += [f"There are no {name} types.", ""]
            continue
        comparison = evaluated.comparison(kinds)
        rows = result_rows(comparison)
        listed = "" if name == "all" else f": {', '.join(kinds)}"
        parts += [
            f"### {name.capitalize()}{listed} ({len(comparison.kinds):,} questions)",
            "",
            f"Uncompressed: {_cell(rows[0])}.",
            "",
            markdown(*_table(rows, evaluated.retentions)),
        ]
    if AT in evaluated.retentions:
        parts += [_by_type(evaluated), _verdict(evaluated)]
    return "\n".join(parts)


def _table(
    rows: Sequence[dict[str, Any]], retentions: Sequence[float]
) -> tuple[list[str], list[list[str]]]:
    by = {(row["method"], row["retention"]): row for row in rows}
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    columns = ["method", "seeds or draws", *(f"{100 * r:.4g}%" for r in retentions)]
    cells = []
    for name in names:
        own = [by[name, retention] for retention in retentions]
        cells.append([name, str(own[0]["draws"].get("count", "")), *map(_cell, own)])
    return columns, cells


def _by_type(evaluated: Evaluated) -> str:
    """Accuracy of each type at the claim's share, and what a question-blind choice can keep."""
    kinds = evaluated.kinds
    rows = {row["method"]: row for row in result_rows(evaluated.comparison(list(kinds)))
            if row["retention"] in (1.0, AT)}  # fmt: skip
    cells = [
        [name, *(f"{100 * row['by_type'][kind]:.1f}" for kind in kinds)]
        for name, row in rows.items()
    ]
    found = served(evaluated)
    cells.append(["kept by the best blind oracle", *(_share(found[kind]) for kind in kinds)])
    columns = ["method", *(f"{kind} ({count})" for kind, count in kinds.items())]
    title = f"### By type, {100 * AT:.4g}% kept (questions)"
    return f"{title}\n\n{markdown(columns, cells)}"


def _verdict(evaluated: Evaluated) -> str:
    """The claim on the types that a question-blind policy can serve, by label and by oracle."""
    labelled = [kind for kind in evaluated.kinds if not QUESTION_TYPES[kind]]
    by_oracle = [kind for kind, found in served(evaluated).items() if found["served"]]
    runs = [name for name in groups(evaluated.conditions) if name in CHANGES]
    lines = ["### The types that a question-blind policy can serve", ""]
    for told, kinds in (
        ("labelled so by the generator", labelled),
        (f"of which the best blind oracle keeps {100 * WANTED:.1f}%", by_oracle),
    ):
        if not kinds:
            lines.append(f"- {told}: none.")
            continue
        comparison = evaluated.comparison(kinds)
        shares = ", ".join(
            f"{name} {_share(kept_accuracy(comparison, name, AT))}"
            for name in (*runs, *BASELINES)
            if any(row.method == name for row in comparison.conditions)
        )
        lines.append(
            f"- {told} ({', '.join(kinds)}; {len(comparison.kinds):,} questions), share of the "
            f"uncompressed accuracy at {100 * AT:.4g}% of the tokens (wanted of SCORE: "
            f"{100 * WANTED:.1f}%): {shares}."
        )
    others = [kind for kind in evaluated.kinds if kind not in by_oracle]
    lines.append(
        f"- Where it cannot: {', '.join(others) or 'none'}. There even the oracle that knows every "
        f"object, and not which is asked about, loses more than {100 * (1 - WANTED):.1f}%."
    )
    return "\n".join(lines) + "\n"


def draw_curves(logs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Reward, share kept and greedy accuracy over updates: means of the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("reward", "rollouts that keep the answer", 5),
        ("kept", "share kept by rollouts", 1),
        ("greedy", "greedy selection at 10%, validation", 1),
    )
    base = yaml.safe_load(BASE.read_text())
    each = base["training"]["samples_per_step"] * base["score"].get("updates", 1)
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    for (name, (told, _)), colour in zip(CHANGES.items(), colours, strict=True):
        own = [log for run, log in logs.items() if run.rpartition("-")[0] == name]
        for axis, (key, title, width) in zip(axes, panels, strict=True):
            curves = []
            for log in own:
                points = [(each * entry["step"], entry[key]) for entry in log if key in entry]
                if points:
                    x, y = zip(*points, strict=True)
                    curves.append((x, smooth(y, width)))
            shortest = min((len(x) for x, _ in curves), default=0)
            axis.set(xlabel="updates", title=title)
            if shortest == 0:
                continue
            stack = np.array([y[:shortest] for _, y in curves])
            x = curves[0][0][:shortest]
            count = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
            axis.plot(x, stack.mean(axis=0), color=colour, label=f"{told}{count}",
                      marker="o" if key == "greedy" else None, ms=4)  # fmt: skip
            axis.fill_between(x, stack.min(axis=0), stack.max(axis=0), color=colour, alpha=0.15)
    border = each * sum(stage["steps"] for stage in base["stages"][:-1])
    for axis in axes:
        axis.axvline(border, color="0.5", lw=0.8, ls=":")
        axis.grid(True, alpha=0.25)
    low, high = axes[0].get_ylim()
    axes[0].annotate(
        "stills | videos", (border, low + 0.02 * (high - low)), ha="center", fontsize=8
    )
    axes[2].legend(fontsize=8)
    figure.suptitle("SCORE on the embedded task (synthetic; no public benchmark run)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cell(row: Mapping[str, Any]) -> str:
    text = accuracy_text(row)
    drawn = row["draws"]
    if drawn:
        text += f" ({100 * drawn['lowest']:.1f}–{100 * drawn['highest']:.1f})"
    return text


def _share(kept: Mapping[str, float]) -> str:
    return f"{100 * kept['kept']:.1f}% [{100 * kept['low']:.1f}, {100 * kept['high']:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
