"""How much of CPO's gradient points at the tokens that the answer hangs on.

    OMP_NUM_THREADS=1 python bench/gradient.py --runs multinomial-0 ocss-0 imitation-0

Of validation questions of the embedded task the tokens that show the asked-about object are known.
For a policy's scores, one update's rollouts are drawn, marked and turned into the gradient of the
CPO loss on the token scores, by each sampler and each `keep_logit`. The table shows the mean cosine
between its descent direction and the direction that lifts those tokens above the others: noise has
0, and the questions that training needs fall with the square of it. Questions about big objects are
left out (they are seen nearly everywhere). Runs are folders of `runs/evidence`; `start` is the
policy before training. Writes `results/gradient.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from evidence import Bench
from training_runs import BASE, RESULTS, trained_policies

from cacovid.policies import CrossAttentionConfig, CrossAttentionPolicy, StoredPolicy, load_policy
from cacovid.train.cpo import CPO, CPOSettings
from cacovid.train.data import TrainingSample, embedded_samples
from cacovid.train.encoding import PreparedSample
from cacovid.train.replay import RatioSettings
from cacovid.train.rollouts import RolloutSettings, Sampler
from cacovid.types import Scores

SAMPLERS: tuple[Sampler, ...] = ("ocss", "multinomial", "uniform")
START = "start"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=[START, "multinomial-0", "ocss-0"])
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--keep-logits", nargs="+", type=float, default=[0.0, -4.0, -8.0])
    parser.add_argument("--seed", type=int, default=9)
    args = parser.parse_args()

    bench = Bench.load(frozenset(), "probability")
    policies = {name: _policy(name, bench.model) for name in args.runs}
    cases = [(sampler, logit) for sampler in SAMPLERS for logit in args.keep_logits]
    found: dict[tuple[str, str, float], list[tuple[float, float]]] = {
        (name, *case): [] for name in policies for case in cases
    }
    samples = embedded_samples("validation", args.seed, -(-args.questions // 4), 5)
    asked = [sample for sample in samples if sample.kind != "big_colour"][: args.questions]
    for number, sample in enumerate(asked):
        prepared = bench.reward.prepare(sample)
        for name, policy in policies.items():
            with torch.no_grad():
                scores = policy(prepared.prompt)
            for sampler, logit in cases:
                objective = CPO(bench.reward, settings(sampler, logit))
                pair = cosine(objective, scores, prepared, sample, number)
                found[name, sampler, logit].append(pair)
    page = _page(found, len(asked), args)
    facts = [
        {"run": name, "sampler": sampler, "keep_logit": logit, "pairs": pairs}
        for (name, sampler, logit), pairs in found.items()
    ]
    (RESULTS / "gradient.json").write_text(json.dumps(facts) + "\n")
    (RESULTS / "gradient.md").write_text(page)
    print(page)
    return 0


def settings(sampler: Sampler, keep_logit: float) -> CPOSettings:
    """The base configuration's objective by another sampler; token rollouts alone, one ratio."""
    base = yaml.safe_load(BASE.read_text())["cpo"]
    count = base["rollouts"]["token_rollouts"]
    return CPOSettings(
        rollouts=RolloutSettings(token_rollouts=count, frame_rollouts=0, sampler=sampler),
        ratio=RatioSettings(dynamic=False),
        keep_logit=keep_logit,
    )


def cosine(
    objective: CPO, scores: Scores, prepared: PreparedSample, sample: TrainingSample, seed: int
) -> tuple[float, float]:
    """Cosine of the descent direction and the evidence's, and the rollouts' mean reward."""
    token = scores.token.detach().clone().requires_grad_()
    progress = objective.begin(prepared, seed)
    update = objective.update(Scores(token, scores.frame), progress)
    (gradient,) = torch.autograd.grad(update.loss, token)
    wanted = torch.zeros(len(token))
    wanted[list(sample.evidence)] = 1.0
    wanted = wanted - wanted.mean()
    # A sample whose rollouts all fare alike gives no gradient.
    length = max(float(gradient.norm()) * float(wanted.norm()), 1e-30)
    return -float(gradient @ wanted) / length, update.metrics["reward"]


def _policy(name: str, model: Any) -> StoredPolicy:
    if name != START:
        return load_policy(trained_policies()[name], base_model=model)
    own = yaml.safe_load(BASE.read_text())["policy"]["settings"]
    torch.manual_seed(0)
    width = model.config.get_text_config().hidden_size
    return CrossAttentionPolicy(CrossAttentionConfig(hidden_size=width, **own)).eval()


def _page(found: dict[Any, list[tuple[float, float]]], count: int, args: Any) -> str:
    lines = [
        "# Where CPO's gradient points",
        "",
        f"Synthetic task; no public benchmark run. Made by `python bench/gradient.py --runs "
        f"{' '.join(args.runs)} --questions {args.questions}`: {count} validation questions, one "
        f"update's rollouts each. Mean cosine (and its standard error) between the descent "
        f"direction on the token scores and the direction that lifts the asked-about object's "
        f"tokens above the others; *reward*: share of the rollouts that were answered rightly.",
        "",
        "| policy | rollouts by | reward | "
        + " | ".join(f"`keep_logit` {logit:g}" for logit in args.keep_logits)
        + " |",
        "|---" * (3 + len(args.keep_logits)) + "|",
    ]
    for name in args.runs:
        for sampler in SAMPLERS:
            cells = []
            for logit in args.keep_logits:
                values = [pair[0] for pair in found[name, sampler, logit]]
                error = statistics.stdev(values) / math.sqrt(len(values))
                cells.append(f"{statistics.mean(values):.3f} ±{error:.3f}")
            reward = statistics.mean(r for _, r in found[name, sampler, args.keep_logits[0]])
            lines.append(f"| {name} | {sampler} | {reward:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
