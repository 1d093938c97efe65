"""Does sampling inside one tier of contributions exclude useful mixed combinations?

    python bench/search.py --policy cacovid/assets/tiny/policy --questions 300

An offline search over combinations that the frozen model scores: hill climbing with a beam from the
policy's own choice, one kept token of a frame exchanged for another of the same frame at a time,
by the probability of the right answer. It is set beside as many random draws of OCSS (every frame
from one sub-space) and of its mixed variant. The best combination found is then forced into one
sub-space per frame: what that costs is what one-tier sampling cannot reach. Validation scenes of
the embedded task; no public benchmark is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import Bench
from torch import Tensor

from cacovid.commands.progress import steps_bar
from cacovid.policies import load_policy
from cacovid.reference import subspaces
from cacovid.train.data import embedded_samples
from cacovid.train.encoding import PreparedSample
from cacovid.train.rewards import LocalReward
from cacovid.train.rollouts import RolloutSettings, Sampler, draw_rollouts
from cacovid.types import Scores

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLERS: tuple[Sampler, ...] = ("uniform", "ocss", "mixed")
ROWS = ("policy", "uniform", "ocss", "mixed", "search", "search, one tier")
#: A combination as good as this ends a search.
ENOUGH = 0.999


@dataclass
class Search:
    """Settings of the search.

    Args:
        ratio: Share of every frame's tokens that a combination keeps.
        beam: Combinations kept from step to step.
        proposals: Exchanges tried on each of them in a step.
        steps: Steps at most; it stops when none is better.
    """

    ratio: float
    beam: int = 4
    proposals: int = 24
    steps: int = 12

    @property
    def trials(self) -> int:
        """Combinations that the search may try, and that the samplers are given."""
        return self.beam * self.proposals * self.steps


def climb(
    reward: LocalReward, prepared: PreparedSample, start: Tensor, search: Search, seed: int
) -> Tensor:
    """The best combination found, `[N]` bool; as many tokens of each frame as `start` has."""
    rng = np.random.default_rng(seed)
    frames = prepared.prompt.grid.num_frames
    each = start.numel() // frames
    beam = start[None]
    value = reward(prepared, beam).value
    for _ in range(search.steps):
        tried = []
        for mask in beam:
            for _ in range(search.proposals * search.beam // len(beam)):
                frame = int(rng.integers(frames))
                own = mask[frame * each : (frame + 1) * each].numpy()
                other = mask.clone()
                other[frame * each + rng.choice(np.flatnonzero(own))] = False
                other[frame * each + rng.choice(np.flatnonzero(~own))] = True
                tried.append(other)
        masks = torch.cat((beam, torch.stack(tried)))
        values = torch.cat((value, reward(prepared, masks[len(beam) :]).value))
        best = values.topk(search.beam).indices
        beam, value = masks[best], values[best]
        if value[0] > ENOUGH:
            break
    return beam[int(value.argmax())]


def best_of(reward: LocalReward, prepared: PreparedSample, masks: Tensor, step: int) -> Tensor:
    """The best of some combinations `[R, N]`, tried `step` at a time until one is `ENOUGH`."""
    best, value = masks[0], -1.0
    for some in masks.split(step):
        values = reward(prepared, some).value
        if float(values.max()) > value:
            best, value = some[int(values.argmax())], float(values.max())
        if value > ENOUGH:
            break
    return best


def force_into_one_tier(mask: Tensor, scores: Tensor, frames: int, ratio: float) -> Tensor:
    """Every frame's choice moved into the sub-space that holds most of it.

    Tokens of other sub-spaces give way to the best of the sub-space; a sub-space that is too small
    is filled as OCSS does, with the ranks that follow it, then those before.
    """
    out = torch.zeros_like(mask)
    each = mask.numel() // frames
    for frame in range(frames):
        span = slice(frame * each, (frame + 1) * each)
        own = subspaces(scores[span], ratio)
        held = mask[span]
        tier_of_rank = torch.repeat_interleave(torch.arange(len(own.sizes)), own.sizes)
        tier = torch.empty_like(tier_of_rank)
        tier[own.order] = tier_of_rank
        count = int(held.sum())
        most = int(torch.bincount(tier[held], minlength=len(own.sizes)).argmax())
        inside = [i for i in own.order.tolist() if tier[i] == most]
        kept = [i for i in inside if held[i]] + [i for i in inside if not held[i]]
        after = [i for i in own.order.tolist() if tier[i] > most]
        before = [i for i in reversed(own.order.tolist()) if tier[i] < most]
        chosen = torch.tensor((kept + after + before)[:count])
        out[chosen + frame * each] = True
    return out


@torch.no_grad()
def measure(
    reward: LocalReward, policy: torch.nn.Module, count: int, search: Search
) -> dict[str, Any]:
    """Probability of the right answer, and share answered rightly, of every row."""
    samples = list(embedded_samples("validation", 11, -(-count // 5), 5))[:count]
    values: dict[str, list[float]] = {row: [] for row in ROWS}
    right: dict[str, list[float]] = {row: [] for row in ROWS}
    mixed_frames, frames_seen = 0, 0
    with steps_bar("Searching", count) as bar:
        for number, sample in enumerate(samples):
            prepared = reward.prepare(sample)
            prompt = prepared.prompt
            token = policy(prompt).token
            scores = Scores(token, None)
            frames = prompt.grid.num_frames

            found: dict[str, Tensor] = {}
            for name in SAMPLERS:
                settings = RolloutSettings(search.trials, 0, name)
                masks = draw_rollouts(
                    scores, prompt, search.ratio, settings, seed=number, draw=0
                ).token_masks
                if name == "ocss":
                    found["policy"] = masks[0]
                found[name] = best_of(reward, prepared, masks, search.proposals * search.beam)
            found["search"] = climb(reward, prepared, found["policy"], search, number)
            forced = force_into_one_tier(found["search"], token, frames, search.ratio)
            found["search, one tier"] = forced
            mixed_frames += int((forced != found["search"]).view(frames, -1).any(dim=1).sum())
            frames_seen += frames
            marks = reward(prepared, torch.stack([found[row] for row in ROWS]))
            for row, value, correct in zip(ROWS, marks.value, marks.correct, strict=True):
                values[row].append(float(value))
                right[row].append(float(correct))
            bar.step(number + 1, None)
    return {
        "rows": {
            row: {"probability": float(np.mean(values[row])), "right": float(np.mean(right[row]))}
            for row in ROWS
        },
        "frames_of_several_tiers": mixed_frames / frames_seen,
        "worse_in_one_tier": float(
            np.mean(np.array(values["search"]) - np.array(values["search, one tier"]) > 0.1)
        ),
        "questions": len(samples),
        "trials": search.trials,
        "ratio": search.ratio,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="cacovid/assets/tiny/policy")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench.load(frozenset(), "probability")
    policy = load_policy(args.policy, base_model=bench.model).eval()
    facts = [measure(bench.reward, policy, args.questions, Search(ratio)) for ratio in args.ratio]
    (RESULTS / "search.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "search.md").write_text(page(facts, args.policy))
    print(page(facts, args.policy))
    return 0


def page(facts: list[dict[str, Any]], policy: str) -> str:
    """The table in Markdown."""
    lines = [
        "# A search over combinations, and what one tier excludes",
        "",
        f"Synthetic task, validation scenes; no public benchmark run. Made by `python "
        f"bench/search.py --policy {policy} --questions {facts[0]['questions']}`. Every "
        f"combination keeps `round(ratio * 36)` tokens of every frame. *uniform*, *ocss* and "
        f"*mixed*: the best of {facts[0]['trials']:,} draws; *search*: a beam search from the "
        f"policy's choice with as many trials (all of them end at a probability of {ENOUGH}); "
        f"*one tier*: the search's result forced into one "
        f"sub-space per frame. All but *policy* are told the right answer: upper references, no "
        f"methods.",
        "",
        "| combination | "
        + " | ".join(f"p(right), {f['ratio']:.0%} | right" for f in facts)
        + " |",
        "|---" * (2 * len(facts) + 1) + "|",
    ]
    for row in ROWS:
        cells = [
            f"{f['rows'][row]['probability']:.3f} | {100 * f['rows'][row]['right']:.1f}"
            for f in facts
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [
        f"At {f['ratio']:.0%}: {f['frames_of_several_tiers']:.0%} of the frames that the search "
        f"ends with hold tokens of several tiers; on {100 * f['worse_in_one_tier']:.1f}% of the "
        f"questions forcing them into one tier costs more than 0.1 of the probability."
        for f in facts
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
