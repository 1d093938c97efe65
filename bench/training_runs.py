"""The training runs behind `results/cpo-*` and `results/score-tiny.*`: settings, folders, logs.

A run is trained in `runs/evidence/NAME-SEED` by `evidence.py train`. `evidence.py keep` puts what
tables read of it, its policy in half precision, into `bench/policies`, so that a table can be made
again, or grow, without the training. The stored default policies are runs, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from cacovid.models.defaults import model_location
from cacovid.policies import load_policy

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "evidence"
KEPT = ROOT / "bench" / "policies"
RESULTS = ROOT / "bench" / "results"
BASE = ROOT / "bench" / "configs" / "tiny-cross-attention.yaml"

#: What each run changes in the base configuration. Runs of other `updates` have as many rollouts.
CHANGES: dict[str, dict[str, Any]] = {
    "ocss": {},
    "multinomial": {"cpo": {"rollouts": {"sampler": "multinomial"}}},
    "uniform-rollouts": {"cpo": {"rollouts": {"sampler": "uniform"}}},
    "mixed": {"cpo": {"rollouts": {"sampler": "mixed"}}},
    "imitation": {
        "objective": "imitation",
        "imitation": {"layer": 2, "queries": "question", "updates": 5},
    },
    "self": {
        "policy": {
            "type": "self_attention",
            "exchange_roles": True,
            "settings": {"slots": None},
        },
        "cpo": {"rollouts": {"sampler": "multinomial"}},
    },
    "self-as-published": {
        "policy": {"type": "self_attention", "settings": {"slots": None}},
        "cpo": {"keep_logit": 0.0},
        "training": {"steps": 0.5},
    },
    "self-multinomial": {
        "policy": {"type": "self_attention", "settings": {"slots": None}},
        "cpo": {"rollouts": {"sampler": "multinomial"}},
    },
    "long": {
        "cpo": {"rollouts": {"sampler": "multinomial"}},
        "training": {"steps": 2.0},
        "data": {"scenes": 1200},
        "reward": {"cached_videos": 1200},
    },
    "ocss-no-greedy": {"cpo": {"rollouts": {"greedy": False}}},
    "multinomial-no-greedy": {"cpo": {"rollouts": {"sampler": "multinomial", "greedy": False}}},
    "uniform-no-greedy": {"cpo": {"rollouts": {"sampler": "uniform", "greedy": False}}},
    "long-ocss": {
        "cpo": {"rollouts": {"greedy": False}},
        "training": {"steps": 2.0},
        "data": {"scenes": 1200},
        "reward": {"cached_videos": 1200},
    },
    "ocss-uncapped": {"cpo": {"rollouts": {"max_subspace_prob": 0.9}}},
    "ocss-uncapped-no-greedy": {
        "cpo": {"rollouts": {"max_subspace_prob": 0.9, "greedy": False}},
    },
    "ocss-keep-logit-0": {"cpo": {"keep_logit": 0.0}},
    "multinomial-keep-logit-0": {
        "cpo": {"keep_logit": 0.0, "rollouts": {"sampler": "multinomial"}},
    },
    "correct": {"reward": {"kind": "correct"}},
    "five-updates": {"cpo": {"updates": 5}, "training": {"steps": 0.4}},
    "fixed-ratio": {"cpo": {"ratio": {"dynamic": False}}},
    "lambda-1": {"cpo": {"rollouts": {"subspace_factor": 1.0}}},
    "lambda-4": {"cpo": {"rollouts": {"subspace_factor": 4.0}}},
    "thresholds-25-75": {"cpo": {"ratio": {"double_below": 0.25, "halve_above": 0.75}}},
    "thresholds-33-67": {"cpo": {"ratio": {"double_below": 0.33, "halve_above": 0.67}}},
}
#: Runs whose policy is stored beside the embedded model.
STORED = {"long-0": "policy", "self-0": "policy-self-attention"}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the changes on top; None takes an entry out."""
    out = dict(base)
    for name, value in changes.items():
        if value is None:
            out.pop(name, None)
            continue
        inner = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if inner else value
    return out


def configuration(name: str, seed: int, steps: int | None) -> dict[str, Any]:
    """The configuration of a run; `steps` of `CHANGES` below 1 are a share of the base's."""
    base = yaml.safe_load(BASE.read_text())
    count = steps or base["training"]["steps"]
    config = merged(base, CHANGES[name])
    share = CHANGES[name].get("training", {}).get("steps", 1)
    own = {"seed": seed, "steps": max(1, round(share * count))}
    return merged(config, {"output": str(RUNS / f"{name}-{seed}"), "training": own})


def train_run(config: dict[str, Any]) -> None:
    """Trains as a configuration says, in its `output`; goes on where a run was stopped.

    A finished run is left alone.
    """
    folder = Path(config["output"])
    if (folder / "after.json").exists():
        print(f"{folder.name}: done already", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"{folder.name}", flush=True)
    print(run_cacovid("train", str(path), "--resume"), flush=True)


def run_cacovid(*arguments: str) -> str:
    """What a command prints; it runs in the project's folder, on one thread."""
    command = [sys.executable, "-m", "cacovid", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
        stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def finished(runs: Path = RUNS) -> list[Path]:
    """Folders of the finished runs."""
    return sorted(path.parent for path in runs.glob("*/after.json"))


def read_log(folder: Path) -> list[dict[str, float]]:
    """What a run logged, and the greedy accuracy before it as step 0."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    if (folder / "before.json").exists():
        before = json.loads((folder / "before.json").read_text())
        log.insert(0, {"step": 0, "greedy": before["accuracy"]})
    return log


def trained_policies() -> dict[str, Path]:
    """Folders of the policies at hand, by run: stored, kept, and of finished runs (these first)."""
    beside = Path(model_location("tiny"))
    found = {run: beside / folder for run, folder in STORED.items()}
    found |= {path.parent.name: path.parent for path in KEPT.glob("*/config.json")}
    found |= {folder.name: folder / "policy" for folder in finished()}
    return dict(sorted(found.items()))


def keep_policies() -> list[Path]:
    """Puts the policies of finished runs into `bench/policies`, in half precision."""
    kept = []
    for folder in finished():
        if folder.name not in STORED:
            load_policy(folder / "policy").to(torch.float16).save_pretrained(KEPT / folder.name)
            kept.append(KEPT / folder.name)
    return kept


def name_of(run: str) -> str:
    """A run's name without its seed."""
    return run.rpartition("-")[0]


def spread(
    logs: Sequence[Sequence[dict[str, float]]], key: str
) -> tuple[list[float], list[float], list[float], list[float]]:
    """The steps at which all seeds logged `key`, and its least, mean and greatest value."""
    values = [{entry["step"]: entry[key] for entry in log if key in entry} for log in logs]
    steps = sorted(set.intersection(*(set(one) for one in values)))
    rows = [[one[step] for one in values] for step in steps]
    return steps, [min(r) for r in rows], [sum(r) / len(r) for r in rows], [max(r) for r in rows]


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Means of up to `width` entries before and at each."""
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))
    ]
