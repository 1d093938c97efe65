r"""Trains policies on tiny Qwen2.5-VL and Qwen3-VL models: greedy selection before and after.

    python bench/families.py

Makes, in `runs/families` (each step is left alone where it is done already):

- clips and questions of associative recall (`bench/recall_task.py`), for training and held out;
- of each family a model *a* of one width on the same hand-made features
  (`bench/recall_models.py`), and with several `--seeds` further ones, *b* and so on;
- on each *a*, by `cacovid train`, a policy by CPO and one by SCORE: `SelfAttentionPolicy`, started
  as the model's own layer 0.

Then answers the held-out questions from the tokens that each policy keeps, before and after its
training, on the model it was trained on, on the family's other models, and on the other family's
*a*. Writes `bench/results/families.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recall_models as models
import recall_task as task
import torch

from cacovid import cli
from cacovid.commands.progress import steps_bar
from cacovid.evaluation.statistics import Bootstrap
from cacovid.methods import Method, PolicyMethod, get
from cacovid.models.prune import select
from cacovid.policies import load_policy
from cacovid.train.config import TrainConfig, build
from cacovid.train.run import Run, prepare

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "families"
RETENTION = 1 / 9
OBJECTIVES = ("cpo", "score")
NAMES = {"qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}

#: What the runs of each objective have of their own.
SETTINGS: dict[str, dict[str, Any]] = {
    "cpo": {
        "cpo": {
            "updates": 1,
            "spread_weight": 0.003,
            "ratio": {"base": RETENTION, "dynamic": False},
            "rollouts": {"token_rollouts": 24, "frame_rollouts": 0, "sampler": "multinomial"},
        }
    },
    "score": {
        "score": {"rollouts": 24, "margin": 0.2, "penalty_weight": 4.0},
    },
}


#: At 4e-3 SCORE keeps ever less after 100 steps, until every rollout is empty.
RATES = {"cpo": 4e-3, "score": 1e-3}


@dataclass(frozen=True)
class Plan:
    """What is run.

    Args:
        runs: Where models, data and policies lie.
        families: Which.
        seeds: Of each family's models: the first is *a*, on which policies are trained.
        model_steps: Steps of a model's training, at most.
        policy_steps: Steps of a policy's training, of four samples each.
        clips: Training clips, of four questions each.
        questions: Held-out questions, four on a clip.
        seed: Of the policies' training.
    """

    runs: Path
    families: list[str]
    seeds: list[int]
    model_steps: int
    policy_steps: int
    clips: int
    questions: int
    seed: int

    @property
    def kinds(self) -> str:
        """Names of a family's models, in the order of their seeds."""
        return "abcdefgh"[: len(self.seeds)]

    def model(self, family: str, kind: str) -> Path:
        """Folder of a model."""
        return self.runs / f"{family}-{kind}"

    def policy(self, family: str, objective: str) -> Path:
        """Folder of a policy's training."""
        return self.runs / f"{family}-{objective}"

    def config(self, family: str, kind: str, objective: str) -> dict[str, Any]:
        """The configuration of a policy's training."""
        return {
            "output": str(self.policy(family, objective)),
            "model": str(self.model(family, kind)),
            "device": "cpu",
            "policy": {"type": "self_attention", "settings": {"policy_share": 1.0}},
            "data": {"file": str(self.runs / "train" / "questions.json")},
            # The command itself evaluates nothing; this script marks all rows in one pass.
            "evaluation": {"questions": 0},
            "reward": {
                "kind": "probability", "free_text": "forced", "cached_videos": self.clips,
            },
            "objective": objective,
            "training": {
                "steps": self.policy_steps, "samples_per_step": 4,
                "learning_rate": RATES[objective], "pretrained_rate_factor": 0.3, "warmup": 0.05,
                "seed": self.seed, "checkpoint_every": 50,
            },
            **SETTINGS[objective],
        }  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "families")
    parser.add_argument(
        "--families", nargs="+", choices=models.FAMILIES, default=list(models.FAMILIES)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the models")
    parser.add_argument("--model-steps", type=int, default=9000)
    parser.add_argument("--policy-steps", type=int, default=400)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the policies")
    parser.add_argument("--output", type=Path, default=RESULTS, help="without its suffix")
    args = vars(parser.parse_args())
    output = args.pop("output")
    plan = Plan(**args)
    torch.set_num_threads(1)
    make_data(plan)
    for family in plan.families:
        make_models(plan, family)
        for objective in OBJECTIVES:
            train_policy(plan, family, objective)
    facts = {"plan": {k: v for k, v in args.items() if k != "runs"}, "rows": measure(plan)}
    output.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    output.with_suffix(".md").write_text(page(facts))
    print(page(facts))
    return 0


def make_data(plan: Plan) -> None:
    """Clips and questions; validation of another seed."""
    for name, clips, seed in (
        ("train", plan.clips, 0),
        ("held-out", -(-plan.questions // task.SHOWN), 1),
    ):
        if not (plan.runs / name / "questions.json").exists():
            task.write_questions(plan.runs / name, clips, seed)


def make_models(plan: Plan, family: str) -> None:
    """A family's models."""
    for seed, kind in zip(plan.seeds, plan.kinds, strict=True):
        folder = plan.model(family, kind)
        with steps_bar(folder.name, plan.model_steps) as bar:
            models.make_checkpoint(
                folder, family, seed, plan.model_steps,
                lambda step, right, bar=bar: bar.step(step, {"reward": right}),
            )  # fmt: skip


def train_policy(plan: Plan, family: str, objective: str) -> None:
    """`cacovid train` on a family's first model."""
    folder = plan.policy(family, objective)
    if (folder / "policy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_text(json.dumps(plan.config(family, "a", objective), indent=1) + "\n")
    if cli.main(["train", str(path), "--resume"]):
        raise SystemExit(f"cacovid train {path} failed")


def measure(plan: Plan) -> list[dict[str, Any]]:
    """The table's rows: what answers the held-out questions from which tokens, on which model."""
    trained = {
        f"{objective}, {family}-a": PolicyMethod(
            load_policy(plan.policy(family, objective) / "policy")
        )
        for family in plan.families
        for objective in OBJECTIVES
    }
    rows: list[dict[str, Any]] = []
    for family in plan.families:
        for kind in plan.kinds:
            run = _loaded(plan, family, kind)
            start = {"before": PolicyMethod(run.policy)} if kind == "a" else {}
            # Policies of the other family on this one's first model only.
            known = {n: m for n, m in trained.items() if kind == "a" or f"{family}-" in n}
            rows += _rows(run, f"{family}-{kind}", {**start, **known})
    return rows


def _loaded(plan: Plan, family: str, kind: str) -> Run:
    """A model with a policy that starts as its layer 0, as `cacovid train` makes them."""
    held_out = {"file": str(plan.runs / "held-out" / "questions.json")}
    config = plan.config(family, kind, "cpo") | {
        "evaluation": {"questions": plan.questions, **held_out}
    }
    return prepare(build(TrainConfig, config, "families"))


def _rows(run: Run, model: str, methods: Mapping[str, Method]) -> list[dict[str, Any]]:
    """One row per method, after those of all tokens and of random ones."""
    samples, reward = run.held_out, run.reward
    chosen = {"random": get("random"), **methods}
    marks: dict[str, list[float]] = {name: [] for name in ("all tokens", *chosen)}
    with steps_bar(model, len(samples)) as bar, torch.no_grad():
        for number, sample in enumerate(samples):
            prepared = reward.prepare(sample)
            prompt = prepared.prompt
            masks = [torch.ones(prompt.grid.num_tokens, dtype=torch.bool)]
            masks += [select(m, prompt, RETENTION, seed=number)[0].mask() for m in chosen.values()]
            right = reward(prepared, torch.stack(masks)).correct.tolist()
            for name, mark in zip(marks, right, strict=True):
                marks[name].append(mark)
            bar.step(number + 1, None)
    drawn = Bootstrap([sample.video_key for sample in samples])
    rows = []
    for name, own in marks.items():
        low, high = drawn.interval(own)
        row = {"model": model, "tokens": name, "accuracy": float(np.mean(own)),
               "low": low, "high": high}  # fmt: skip
        if "before" in marks and name.endswith(f", {model}"):
            gain = np.array(own) - np.array(marks["before"])
            row["gain"] = [float(gain.mean()), *drawn.interval(gain)]
        rows.append(row)
    return rows


def page(facts: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    plan = facts["plan"]
    kept = int(RETENTION * task.TOKENS + 1e-9)
    lines = [
        "# Training on other families",
        "",
        f"Synthetic task (`bench/recall_task.py`); no public benchmark run. Made by `python "
        f"bench/families.py`. Tiny Qwen2.5-VL and Qwen3-VL models "
        f"({models.WIDTH} wide, two decoder layers trained on fresh clips, the same hand-made "
        f"features); "
        f"policies of {plan['policy_steps']} steps on {plan['clips']} clips by `cacovid train`, "
        f"started as layer 0 of the model *a* of their family. {plan['questions']} held-out "
        f"questions, {kept} of {task.TOKENS} video tokens kept by greedy selection; right answers "
        f"in percent with 95% intervals (bootstrap over clips). One in {len(task.NAMES)} is right "
        f"by chance; one token shows the answer, and {task.SHOWN} tokens show the answer to some "
        f"question. One training seed.",
        "",
        "| model | tokens from | right | change by training |",
        "|---|---|---|---|",
    ]
    for row in facts["rows"]:
        family, _, kind = row["model"].rpartition("-")
        gain = ""
        if "gain" in row:
            gain = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in row["gain"]))
        right = "{:.1f} ({:.1f} to {:.1f})".format(
            *(100 * row[name] for name in ("accuracy", "low", "high"))
        )
        lines.append(f"| {NAMES[family]} {kind} | {_told(row)} | {right} | {gain} |")
    return "\n".join(lines) + "\n"


def _told(row: Mapping[str, Any]) -> str:
    objective, _, model = row["tokens"].partition(", ")
    if objective not in OBJECTIVES:
        return {"before": "policy before training", "random": "random tokens"}.get(
            objective, objective
        )
    if model == row["model"]:
        return f"policy after {objective.upper()}"
    family, _, kind = model.rpartition("-")
    return f"policy after {objective.upper()} on {NAMES[family]} {kind}"


if __name__ == "__main__":
    sys.exit(main())
