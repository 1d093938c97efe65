r"""Trains the embedded model's policies and compares them: the tables and curves of `results/`.

    python bench/evidence.py train --runs ocss multinomial uniform-rollouts imitation self \
        --seeds 0 1 2
    python bench/evidence.py curves
    python bench/evidence.py table --split test
    python bench/evidence.py table --split shifted --share 1/2
    python bench/evidence.py variants
    python bench/evidence.py shares --run long-0
    python bench/evidence.py letters

`train` runs `cacovid train` once for each run and seed (resumable; a finished one is left alone).
`curves` draws reward and greedy accuracy over training. `table` compares the finished policies
with the training-free methods and the oracles on test scenes, `variants` all runs with each other
on validation scenes; `shares` tries the policy's share of the budget on validation scenes. Their
answers are kept under `runs/answers` as they come: a command that is given again goes on, and
`--share 1/2` beside `--share 2/2` halves the work. `letters` compares the two ways of answering
multiple choice, by one forward over the letters and by generation. Each writes Markdown and JSON.
Everything is of the synthetic task; no public benchmark is run. On two cores run two commands at
a time, each with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from parts import Parts, Row
from training_runs import (
    CHANGES,
    RESULTS,
    ROOT,
    configuration,
    finished,
    keep_policies,
    name_of,
    read_log,
    smooth,
    spread,
    train_run,
    trained_policies,
)

from cacovid.commands.progress import steps_bar
from cacovid.evaluation.answers import Answerer
from cacovid.evaluation.choosers import Chooser, MethodChooser, choosers
from cacovid.evaluation.compare import Comparison, Evaluator
from cacovid.evaluation.results import accuracy_text, markdown, result_rows, table
from cacovid.methods import PolicyMethod
from cacovid.models.defaults import model_location, reading_defaults
from cacovid.models.processing import load_processor
from cacovid.models.storage import load_whole
from cacovid.policies import load_policy
from cacovid.train.data import embedded_samples, read_sample_frames
from cacovid.train.encoding import SampleEncoder
from cacovid.train.rewards import LocalReward, RewardKind, freeze

ANSWERS = ROOT / "runs" / "answers"

#: Rows of the tables on test scenes; `variants` compares all runs on validation scenes.
SHOWN = (
    "long", "long-ocss", "multinomial", "multinomial-no-greedy", "ocss", "ocss-no-greedy",
    "uniform-rollouts", "uniform-no-greedy", "imitation", "self", "self-as-published",
)  # fmt: skip
#: Of those, what is asked at every retention; the others at `--others-retention`.
WHOLE = ("long", "long-ocss", "self", "self-as-published")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
METHODS = (
    "score", "random", "uniform", "attention:0:last", "attention:0:question", "attention:2:last",
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
    commands.add_parser("keep")
    commands.add_parser("curves")
    table = commands.add_parser("table")
    table.add_argument("--split", default="test", choices=("test", "shifted", "validation"))
    table.add_argument("--questions", type=int, default=2000)
    table.add_argument("--retention", nargs="+", type=float, default=[0.25, 0.2, 0.15, 0.1, 0.05])
    table.add_argument("--others-retention", nargs="+", type=float, default=[0.1, 0.05])
    table.add_argument("--seed", type=int, default=0)
    table.add_argument(
        "--only", nargs="+", metavar="RUN", choices=list(CHANGES),
        help="answer these runs alone, at all retentions; every other row stays as it is",
    )  # fmt: skip
    variants = commands.add_parser("variants")
    variants.add_argument("--questions", type=int, default=1000)
    variants.add_argument("--retention", nargs="+", type=float, default=[0.1, 0.05])
    variants.add_argument("--seed", type=int, default=7)
    shares = commands.add_parser("shares")
    shares.add_argument("--run", default="long-0")
    shares.add_argument("--questions", type=int, default=500)
    for command in (table, variants, shares):
        command.add_argument(
            "--share", type=_share, default=(0, 1), metavar="K/N",
            help="answer every N-th video only, from the K-th; N such commands share the work",
        )  # fmt: skip
    letters = commands.add_parser("letters")
    letters.add_argument("--questions", type=int, default=500)
    args = parser.parse_args()
    if args.command == "letters":
        _letters(args.questions)
    elif args.command == "train":
        for name in args.runs:
            for seed in args.seeds:
                train_run(configuration(name, seed, args.steps))
    elif args.command == "keep":
        for folder in keep_policies():
            print(folder.relative_to(ROOT))
    elif args.command == "curves":
        _curves()
    elif args.command == "variants":
        _variants(args)
    elif args.command == "shares":
        _shares(args)
    else:
        _table(args)
    return 0


def _curves() -> None:
    import matplotlib.pyplot as plt

    # Logs of runs that are not at hand any more stay as they were.
    facts = _read(RESULTS / "cpo-curves.json") | {
        folder.name: read_log(folder) for folder in finished()
    }
    seeds: dict[str, list[list[dict[str, float]]]] = {}
    for run, log in facts.items():
        seeds.setdefault(name_of(run), []).append(log)
    others = [name for name in seeds if name not in SHOWN]
    panels = (
        ("samplers and policies", SHOWN, 0.55),
        ("settings", ("multinomial", "ocss", *others), 0.8),
    )
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), constrained_layout=True)
    for row, (title, names, least) in zip(axes, panels, strict=True):
        for number, name in enumerate(name for name in names if name in seeds):
            _draw_run(row, name, seeds[name], plt.get_cmap("tab20").colors[number])
        row[0].set(xlabel="step", title=f"{title}: mean reward of the rollouts")
        row[1].set(xlabel="step", title="greedy selection at 10%, validation", ylim=(least, 1.0))
        row[1].legend(
            bbox_to_anchor=(1.01, 1), loc="upper left", fontsize="small",
            title="run (seeds: mean, least to greatest)",
        )  # fmt: skip
    figure.savefig(RESULTS / "cpo-curves.png", dpi=100)
    (RESULTS / "cpo-curves.json").write_text(json.dumps(dict(sorted(facts.items()))) + "\n")
    print(RESULTS / "cpo-curves.png")


def _draw_run(
    axes: Sequence[Any], name: str, logs: Sequence[Sequence[dict[str, float]]], colour: Any
) -> None:
    label = f"{name} ({len(logs)})" if len(logs) > 1 else name
    for axis, key, width in zip(axes, ("reward", "greedy"), (5, 1), strict=True):
        steps, low, mean, high = spread(logs, key)
        axis.plot(steps, smooth(mean, width), color=colour, label=label)
        if len(logs) > 1:
            axis.fill_between(
                steps, smooth(low, width), smooth(high, width), color=colour, alpha=0.2, lw=0
            )


@dataclass
class Bench:
    """The embedded model as the tables use it: in bfloat16, twice as fast on a CPU."""

    model: Any
    reward: LocalReward

    @classmethod
    def load(cls, needs: frozenset[str], kind: RewardKind = "correct") -> Bench:
        location = model_location("tiny")
        model = freeze(load_whole(location, torch.bfloat16))
        reading = reading_defaults(location)
        encoder = SampleEncoder(
            model,
            load_processor(location),
            lambda sample: read_sample_frames(sample, reading.max_frames, reading.fps),
            2,
            needs,
        )
        # Every answer of the embedded task has one right wording.
        return cls(model, LocalReward(encoder, kind, free_text="forced"))


def _measure(bench: Bench, rows: Sequence[Row], args: argparse.Namespace) -> Comparison:
    """All rows on the same questions.

    Raises:
        SystemExit: while other commands of the same work still answer.
    """
    samples = embedded_samples(args.split, args.seed, -(-args.questions // 8), 8)
    samples = samples[: args.questions]
    encoder = bench.reward.encoder
    answerer = Answerer(bench.model, encoder.processor.tokenizer)

    def make(chosen: Sequence[Chooser], retentions: Sequence[float]) -> Evaluator:
        return Evaluator(encoder, answerer, chosen, retentions, args.seed)

    weights = sha256_of(Path(model_location("tiny")))
    parts = Parts(
        ANSWERS / f"{args.split}-{args.seed}",
        {"model": weights, "dtype": str(bench.model.dtype), "split": args.split, "seed": args.seed},
    )
    with steps_bar("Answering", len(samples)) as bar:
        found = parts.gather(
            rows, samples, make, args.share, lambda done, left: bar.step(done, None, left)
        )
    if found is None:
        raise SystemExit("this share is done; the others are not: give the command again later")
    return found


def sha256_of(folder: Path) -> str:
    """The first digits of the hash of a folder's weights."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; expected K/N, e.g. 1/2")
    return int(number) - 1, int(count)


def _table(args: argparse.Namespace) -> None:
    name, only = f"cpo-{args.split}", args.only is not None
    if only:
        args.others_retention = args.retention
    wanted = args.only if only else SHOWN
    policies = {run: at for run, at in trained_policies().items() if name_of(run) in wanted}
    fresh = _compare(args, policies, () if only else METHODS)
    facts = with_earlier_rows(fresh, _read(RESULTS / f"{name}.json"), methods=only)
    _write(name, facts, args)
    _plot(facts, RESULTS / f"cpo-{args.split}.png")


def _variants(args: argparse.Namespace) -> None:
    args.split = "validation"
    facts = _compare(args, trained_policies(), ("attention:2:question", "oracle"))
    _write("cpo-variants", with_earlier_rows(facts, _read(RESULTS / "cpo-variants.json")), args)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def with_earlier_rows(
    facts: dict[str, Any], earlier: dict[str, Any], methods: bool = False
) -> dict[str, Any]:
    """Adds rows that were not asked for, out of an earlier table: of runs that are not at hand.

    Args:
        facts: A new table.
        earlier: Its predecessor; counts only if it is of the same model and questions. Its rows of
            a run that was asked for at other shares stay if both are of the same weights.
        methods: Whether to add methods' rows, too.
    """
    same = all(earlier.get(name) == facts[name] for name in ("questions", "seed", "model"))
    if not same:
        return facts
    now, before = facts.get("versions", {}), earlier.get("versions", {})
    there = {(row["method"], row["retention"]) for row in facts["results"]}
    changed = {run for run, version in now.items() if before.get(run) != version}
    left = [
        row
        for row in earlier["results"]
        if (row["method"], row["retention"]) not in there and row["method"] not in changed
    ]
    full, *rows = [
        *facts["results"], *(row for row in left if methods or _is_run(row["method"]))
    ]  # fmt: skip
    rows.sort(
        key=lambda row: (row["method"], -row["retention"]) if _is_run(row["method"]) else ("~", 0)
    )
    return {**facts, "results": [full, *rows], "versions": before | now}


def _is_run(method: str) -> bool:
    return name_of(method) in CHANGES


def _write(name: str, facts: dict[str, Any], args: argparse.Namespace) -> None:
    page = _page(facts, args)
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page)
    print(page)


def _compare(
    args: argparse.Namespace, folders: Mapping[str, Path], others: Sequence[str]
) -> dict[str, Any]:
    bench = Bench.load(frozenset())
    policies = {
        run: PolicyMethod(load_policy(folder, base_model=bench.model))
        for run, folder in folders.items()
    }
    versions = {run: sha256_of(folder) for run, folder in folders.items()}
    versions["score"] = sha256_of(Path(model_location("tiny")) / "policy-score")
    whole, few = tuple(args.retention), tuple(getattr(args, "others_retention", args.retention))
    rows = [
        Row(
            chooser,
            few if chooser.name in policies and name_of(chooser.name) not in WHOLE else whole,
            versions.get(chooser.name, ""),
        )
        for chooser in choosers([*policies, *others], bench.model, policies)
    ]
    bench.reward.encoder.needs = frozenset().union(*(row.chooser.needs for row in rows))
    comparison = _measure(bench, rows, args)
    return {
        "results": result_rows(comparison),
        "questions": len(comparison.kinds),
        "seed": args.seed,
        "model": sha256_of(Path(model_location("tiny"))),
        "versions": {row.chooser.name: row.version for row in rows if row.version},
    }


def grouped(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Methods by what tables call them: runs of several seeds are one row."""
    groups: dict[str, list[str]] = {}
    for row in rows[1:]:
        name, _, seed = row["method"].rpartition("-")
        known = name in CHANGES and seed.isdigit()
        group = groups.setdefault(name if known else row["method"], [])
        if row["method"] not in group:
            group.append(row["method"])
    return groups


def _page(facts: dict[str, Any], args: argparse.Namespace) -> str:
    rows = facts["results"]
    by = {(row["method"], row["retention"]): row for row in rows}
    command = "variants" if args.command == "variants" else f"table --split {args.split}"
    lines = [
        f"# CPO on the embedded task: {args.split}, {facts['questions']:,} questions",
        "",
        f"Synthetic task; no public benchmark run. Made by `python bench/evidence.py {command} "
        f"--seed {args.seed} --questions {args.questions} --retention "
        f"{' '.join(map(str, args.retention))}`. Accuracy in percent over "
        f"all question types, model in bfloat16, with half of the 95% interval (bootstrap over "
        f"questions); for several training seeds the mean, and the least and greatest seed. "
        f"*ocss*, *multinomial*, *uniform-rollouts*: how the combinations of the training were "
        f"drawn, the first of them greedy, 600 steps; *no-greedy*: all of them drawn; *long*: "
        f"multinomial, *long-ocss*: OCSS without the greedy one, 1,200 steps; *imitation*: "
        f"the same network, taught the attention of all question tokens in the third layer; "
        f"*self*: `SelfAttentionPolicy` that starts with exchanged roles, multinomial, 600 steps; "
        f"*self-as-published*: as the layer stands, OCSS without `keep_logit`, 300 steps. All "
        f"settings: `bench/evidence.py`; an empty cell was not asked for. Uncompressed: "
        f"{accuracy_text(rows[0])}.",
        "",
        "| method | seeds | " + " | ".join(f"{r:.0%}" for r in args.retention) + " |",
        "|---" * (len(args.retention) + 2) + "|",
    ]
    for name, members in grouped(rows).items():
        cells = []
        for retention in args.retention:
            own = [by[member, retention] for member in members if (member, retention) in by]
            if not own:
                cells.append("")
                continue
            if len(own) == 1:
                cells.append(accuracy_text(own[0]))
                continue
            values = [100 * row["accuracy"] for row in own]
            mean = sum(values) / len(values)
            cells.append(f"{mean:.1f} ({min(values):.1f}–{max(values):.1f})")
        seeds = str(len(members)) if name in CHANGES else ""
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plot(facts: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    rows = facts["results"]
    figure, axis = plt.subplots(figsize=(9, 5), constrained_layout=True)
    axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    axis.axhline(100 * rows[0]["accuracy"], color="0.6", lw=1, ls=":", label="uncompressed")
    for name, members in grouped(rows).items():
        points: dict[float, list[float]] = {}
        for row in rows[1:]:
            if row["method"] in members:
                points.setdefault(row["retention"], []).append(100 * row["accuracy"])
        x = sorted(points)
        y = [sum(points[r]) / len(points[r]) for r in x]
        style = "-" if name in CHANGES else "--"
        axis.plot([100 * r for r in x], y, style, marker="o", ms=3, label=name)
    axis.set(xlabel="kept tokens, %", ylabel="accuracy, %")
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shares(args: argparse.Namespace) -> None:
    policy = trained_policies()[args.run]
    bench = Bench.load(frozenset())
    loaded = load_policy(policy, base_model=bench.model)
    version = sha256_of(policy)
    asked = [
        Row(
            MethodChooser(PolicyMethod(loaded, policy_share=share), f"share {share}"),
            (0.25, 0.1, 0.05),
            version,
        )
        for share in SHARES
    ]
    args.split, args.seed = "validation", 21
    rows = result_rows(_measure(bench, asked, args))
    questions = args.questions
    columns, cells = table(rows, [0.25, 0.1, 0.05])
    page = (
        f"# The policy's share of the budget\n\nSynthetic task, {questions} validation questions; "
        f"no public benchmark run. Made by `python bench/evidence.py shares --run "
        f"{args.run} --questions {questions}`. Accuracy in percent; the rest of the "
        f"budget is spread evenly over what the scores left out.\n\n{markdown(columns, cells)}"
    )
    (RESULTS / "cpo-shares.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "cpo-shares.md").write_text(page)
    print(page)


@torch.no_grad()
def _letters(questions: int) -> None:
    bench = Bench.load(frozenset())
    reward = bench.reward
    wanted = (s for s in embedded_samples("validation", 23, questions, 5) if s.options)
    samples = [sample for sample, _ in zip(wanted, range(questions), strict=False)]
    same, right = 0, {"letters": 0, "generated": 0}
    with steps_bar("Answering", len(samples)) as bar:
        for number, sample in enumerate(samples):
            prepared = reward.prepare(sample)
            masks = torch.rand(2, 576, generator=torch.Generator().manual_seed(number)) < 0.1
            masks[0] = True
            one = reward(prepared, masks).correct
            as_text = replace(prepared, sample=replace(sample, problem_type="exact"))
            other = LocalReward(reward.encoder, free_text="generate")(as_text, masks).correct
            same += int((one == other).sum())
            right["letters"] += int(one.sum())
            right["generated"] += int(other.sum())
            bar.step(number + 1, None)
    count = 2 * len(samples)
    page = (
        f"# Multiple choice: one forward over the letters, or generation\n\nSynthetic task, "
        f"{len(samples)} validation questions with options, each from all tokens and from a random "
        f"tenth; no public benchmark run. Made by `python bench/evidence.py letters`.\n\n"
        f"- the same mark: {same} of {count}\n- right by the letters: {right['letters']}\n"
        f"- right by generation: {right['generated']}\n"
    )
    (RESULTS / "letters.md").write_text(page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
