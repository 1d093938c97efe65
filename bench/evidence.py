"""Trains the embedded model's policies and compares them: the tables and curves of `results/`.

    python bench/evidence.py train --runs ocss multinomial uniform imitation self --seeds 0 1 2
    python bench/evidence.py curves
    python bench/evidence.py table --split test shifted

`train` runs `cacovid train` once for each run and seed (resumable; a finished one is left alone).
`curves` draws reward and greedy accuracy over training. `table` compares all finished policies
with the training-free methods and the oracles on test scenes, and writes Markdown and JSON.
Everything is of the synthetic task; no public benchmark is run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "evidence"
RESULTS = ROOT / "bench" / "results"
BASE = ROOT / "bench" / "configs" / "tiny-cross-attention.yaml"

#: What each run changes in the base configuration.
CHANGES: dict[str, dict[str, Any]] = {
    "ocss": {},
    "multinomial": {"cpo": {"rollouts": {"sampler": "multinomial"}}},
    "uniform": {"cpo": {"rollouts": {"sampler": "uniform"}}},
    "imitation": {
        "objective": "imitation",
        "imitation": {"layer": 3, "queries": "question", "updates": 5},
    },
    "self": {"policy": {"type": "self_attention"}},
    "graded": {"reward": {"kind": "probability"}},
    "fixed-ratio": {"cpo": {"ratio": {"dynamic": False}}},
    "lambda-1": {"cpo": {"rollouts": {"subspace_factor": 1.0}}},
    "lambda-4": {"cpo": {"rollouts": {"subspace_factor": 4.0}}},
    "thresholds-25-75": {"cpo": {"ratio": {"double_below": 0.25, "halve_above": 0.75}}},
    "thresholds-33-67": {"cpo": {"ratio": {"double_below": 0.33, "halve_above": 0.67}}},
}
METHODS = (
    "random", "uniform", "attention:0:last", "attention:0:question", "attention:2:last",
    "attention:2:question", "blind-oracle", "blind-oracle-in-turn", "oracle",
)  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--runs", nargs="+", default=["ocss"], choices=list(CHANGES))
    train.add_argument("--seeds", nargs="+", type=int, default=[0])
    train.add_argument("--steps", type=int, help="steps of every run")
    commands.add_parser("curves")
    table = commands.add_parser("table")
    table.add_argument("--split", nargs="+", default=["test", "shifted"])
    table.add_argument("--questions", type=int, default=2000)
    table.add_argument("--retention", nargs="+", default=["0.25", "0.2", "0.15", "0.1", "0.05"])
    table.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "train":
        for name in args.runs:
            for seed in args.seeds:
                _train(name, seed, args.steps)
    elif args.command == "curves":
        _curves()
    else:
        for split in args.split:
            _table(split, args)
    return 0


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the changes on top."""
    out = dict(base)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if inner else value
    return out


def _train(name: str, seed: int, steps: int | None) -> None:
    folder = RUNS / f"{name}-{seed}"
    if (folder / "after.json").exists():
        print(f"{folder.name}: done already", flush=True)
        return
    training: dict[str, Any] = {"seed": seed}
    if steps is not None:
        training["steps"] = steps
    own = {"output": str(folder), "training": training}
    config = merged(merged(yaml.safe_load(BASE.read_text()), CHANGES[name]), own)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"{folder.name}", flush=True)
    _cacovid("train", str(path), "--resume")


def _cacovid(*arguments: str) -> str:
    command = [sys.executable, "-m", "cacovid", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def finished() -> list[Path]:
    """Folders of the finished runs."""
    return sorted(path.parent for path in RUNS.glob("*/after.json"))


def _curves() -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    colours: dict[str, Any] = {}
    for folder in finished():
        name = folder.name.rpartition("-")[0]
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for axis, key in zip(axes, ("reward", "ratio", "token_spread"), strict=True):
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            if not points:
                continue
            label = name if name not in colours else None
            (line,) = axis.plot(*zip(*points, strict=True), color=colours.get(name), label=label)
            colours[name] = line.get_color()
            axis.set(xlabel="step", title=key)
    axes[0].legend()
    figure.savefig(RESULTS / "cpo-curves.png", dpi=110)
    print(RESULTS / "cpo-curves.png")


def _table(split: str, args: argparse.Namespace) -> None:
    policies = [str((folder / "policy").relative_to(ROOT)) for folder in finished()]
    text = _cacovid(
        "eval", "--embedded", "--split", split, "--limit", str(args.questions), "--seed",
        str(args.seed), "--retention", *args.retention, "--methods", *policies, *METHODS, "--json",
    )  # fmt: skip
    facts = json.loads(text)
    stem = RESULTS / f"cpo-{split}"
    stem.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    rows = facts["results"]
    full = rows[0]
    retentions = [float(r) for r in args.retention]
    lines = [
        f"# CPO on the embedded task: {split}, {facts['questions']:,} questions",
        "",
        f"Synthetic task; no public benchmark run. Made by `python bench/evidence.py table --split "
        f"{split} --seed {args.seed}`. Accuracy in percent over all question types, with half of "
        f"the 95% interval (bootstrap over questions); uncompressed: {_cell(full)}.",
        "",
        "| method | " + " | ".join(f"{r:.0%}" for r in retentions) + " |",
        "|---" * (len(retentions) + 1) + "|",
    ]
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    by = {(row["method"], row["retention"]): row for row in rows}
    for name in names:
        said = Path(name).parent.name if name.endswith("/policy") else name
        lines.append(f"| {said} | " + " | ".join(_cell(by[name, r]) for r in retentions) + " |")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _cell(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} ±{50 * (row['high'] - row['low']):.1f}"


if __name__ == "__main__":
    sys.exit(main())
