"""Every chooser at every retention on the same questions, one forward per question."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cacovid.evaluation.choosers import Chooser
from cacovid.train.data import TrainingSample
from cacovid.train.rewards import RewardBackend

#: The row that keeps everything.
UNCOMPRESSED = "uncompressed"


@dataclass
class Condition:
    """One row of a comparison.

    Args:
        method: The chooser's name.
        retention: Share of the tokens kept.
        marks: One per question.
        tokens: Kept tokens per question.
        seconds: Seconds of scoring and choosing, per question.
    """

    method: str
    retention: float
    marks: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Mean mark."""
        return float(np.mean(self.marks))


@dataclass
class Comparison:
    """All rows, and each question's type.

    Args:
        conditions: The rows; the first is uncompressed.
        kinds: Type of each question.
    """

    conditions: list[Condition]
    kinds: list[str]

    def find(self, method: str, retention: float) -> Condition:
        """The row of a method at a retention."""
        for condition in self.conditions:
            if condition.method == method and abs(condition.retention - retention) < 1e-12:
                return condition
        raise KeyError((method, retention))


@torch.no_grad()
def compare(
    samples: Sequence[TrainingSample],
    reward: RewardBackend,
    choosers: Sequence[Chooser],
    retentions: Sequence[float],
    seed: int = 0,
    on_sample: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Marks the answers of every chooser at every retention.

    Args:
        samples: The questions.
        reward: Marks answers from kept tokens; prepares samples with the choosers' needs.
        choosers: What is compared.
        retentions: Shares of the tokens kept, each in (0, 1].
        seed: Question `i` is drawn with `seed * 1_000_003 + i`.
        on_sample: Called with the number of questions done.
    """
    rows = [Condition(UNCOMPRESSED, 1.0)]
    rows += [Condition(c.name, r) for c in choosers for r in retentions]
    for number, sample in enumerate(samples):
        prepared = reward.prepare(sample)
        count = prepared.prompt.grid.num_tokens
        masks = [torch.ones(count, dtype=torch.bool, device=prepared.prompt.embeds.device)]
        rows[0].seconds.append(0.0)
        places = iter(rows[1:])
        for chooser in choosers:
            for retention in retentions:
                begin = time.perf_counter()
                masks.append(chooser(prepared, retention, seed * 1_000_003 + number))
                next(places).seconds.append(time.perf_counter() - begin)
        read = torch.stack(masks)
        marks = reward(prepared, read).correct.tolist()
        kept = read.sum(dim=1).tolist()
        for row, value, tokens in zip(rows, marks, kept, strict=True):
            row.marks.append(value)
            row.tokens.append(tokens)
        on_sample(number + 1)
    return Comparison(rows, [sample.kind for sample in samples])
