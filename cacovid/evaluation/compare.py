"""Every chooser at every retention on the same questions, the questions of a video together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cacovid.errors import VideoReadError
from cacovid.evaluation.answers import Answerer, Reply, Request, same_answer
from cacovid.evaluation.choosers import Chooser, Chosen
from cacovid.train.data import TrainingSample
from cacovid.train.encoding import PreparedSample, SampleEncoder
from cacovid.types import Grid, Selection

#: The row that keeps everything.
UNCOMPRESSED = "uncompressed"

#: Questions of one video that are answered together; more would only cost memory.
TOGETHER = 16

#: Seconds by stage of one question, for each condition.
Times = tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Result:
    """What one question gave.

    Args:
        id: The question's.
        kind: Its finer type.
        video: Its video; questions on one video have the same.
        replies: One per condition; empty where the video cannot be read.
        seconds: By stage, one per condition; empty where the question was not timed.
        unreadable: Why the video cannot be read.
    """

    id: str
    kind: str
    video: str
    replies: tuple[Reply, ...] = ()
    seconds: Times = ()
    unreadable: str = ""


@dataclass
class Condition:
    """One row of a comparison: a method at a retention.

    Args:
        method: The chooser's name.
        retention: Share of the tokens kept.
        marks: One per question.
        tokens: Kept video tokens per question; inside the language model: averaged over layers.
        shares: Kept share of the video tokens per question.
        entering: Tokens that entered the language model, per question.
        same: Whether the answer was the uncompressed model's, per question.
        seconds: By stage, one per timed question.
        parts: Accuracies of the rows that this one is the mean of, where it is one.
    """

    method: str
    retention: float
    marks: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    entering: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)
    parts: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean mark."""
        return float(np.mean(self.marks))

    @classmethod
    def mean(cls, method: str, rows: Sequence[Condition]) -> Condition:
        """Rows of the same questions and retention as one: everything averaged by question.

        Args:
            method: What the mean is called.
            rows: At least one; a single one is taken as it is, under the new name.
        """
        if len(rows) == 1:
            return replace(rows[0], method=method)
        names = ("marks", "tokens", "shares", "entering", "same")
        averaged = {
            name: np.mean([getattr(row, name) for row in rows], axis=0).tolist() for name in names
        }
        return cls(
            method,
            rows[0].retention,
            **averaged,
            seconds=[times for row in rows for times in row.seconds],
            parts=tuple(row.accuracy for row in rows),
        )


@dataclass
class Comparison:
    """All rows, and what each question was.

    Args:
        conditions: The rows; the first is uncompressed.
        kinds: Type of each question.
        videos: Video of each question.
        unreadable: Questions whose video cannot be read, with the reason; they are in no row.
    """

    conditions: list[Condition]
    kinds: list[str]
    videos: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def find(self, method: str, retention: float) -> Condition:
        """The row of a method at a retention."""
        for condition in self.conditions:
            if condition.method == method and abs(condition.retention - retention) < 1e-12:
                return condition
        raise KeyError((method, retention))

    def pooled(self, groups: Mapping[str, Sequence[str]]) -> Comparison:
        """Rows of several methods (draws of one, seeds of a training) as one row each.

        Args:
            groups: New name -> names of the methods. Methods that no group names are left out; the
                uncompressed row stays.

        Returns:
            The groups' rows in their order, by retention as they were.
        """
        rows = [self.conditions[0]]
        for name, members in groups.items():
            own: dict[float, list[Condition]] = {}
            for row in self.conditions[1:]:
                if row.method in members:
                    own.setdefault(row.retention, []).append(row)
            rows += [Condition.mean(name, found) for found in own.values()]
        return replace(self, conditions=rows)

    @classmethod
    def of(cls, conditions: Iterable[tuple[str, float]], results: Iterable[Result]) -> Comparison:
        """Puts the questions' results together.

        Args:
            conditions: `(method, retention)` of the replies, the first uncompressed.
            results: In the order of the questions.

        Raises:
            VideoReadError: if none of the videos can be read.
        """
        out = cls([Condition(method, retention) for method, retention in conditions], [])
        for result in results:
            if result.unreadable:
                out.unreadable[result.id] = result.unreadable
                continue
            out.kinds.append(result.kind)
            out.videos.append(result.video)
            full = result.replies[0]
            for row, reply in zip(out.conditions, result.replies, strict=True):
                row.marks.append(reply.mark)
                row.tokens.append(reply.tokens)
                row.shares.append(reply.tokens / full.tokens)
                row.entering.append(reply.entering)
                row.same.append(same_answer(reply.answer, full.answer))
            for row, times in zip(out.conditions, result.seconds, strict=False):
                row.seconds.append(times)
        if out.unreadable and not out.kinds:
            reason = next(iter(out.unreadable.values()))
            raise VideoReadError(f"none of the videos can be read: {reason}")
        return out


def conditions_of(
    choosers: Sequence[Chooser], retentions: Sequence[float]
) -> list[tuple[str, float]]:
    """`(method, retention)` of all rows, the first uncompressed."""
    return [(UNCOMPRESSED, 1.0), *((c.name, float(r)) for c in choosers for r in retentions)]


def by_video(samples: Sequence[TrainingSample], most: int = TOGETHER) -> list[list[int]]:
    """Numbers of the samples on one video, at most `most` together, in the data's order."""
    found: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        found.setdefault(sample.video_key, []).append(number)
    return [
        numbers[begin : begin + most]
        for numbers in found.values()
        for begin in range(0, len(numbers), most)
    ]


class Evaluator:
    """Answers questions under all conditions.

    Args:
        encoder: Reads and embeds the questions; has the extras that the choosers need.
        answerer: Answers.
        choosers: What is compared.
        retentions: Shares of the tokens kept, each in (0, 1].
        seed: Question `i` of the data is drawn with `seed * 1_000_003 + i`.
        time: Gives the seconds by stage of one question for each condition; None: nothing is
            timed.
    """

    def __init__(
        self,
        encoder: SampleEncoder,
        answerer: Answerer,
        choosers: Sequence[Chooser],
        retentions: Sequence[float],
        seed: int = 0,
        time: Callable[[TrainingSample, int], Times] | None = None,
    ) -> None:
        self.encoder = encoder
        self.answerer = answerer
        self.choosers = choosers
        self.retentions = retentions
        self.seed = seed
        self.time = time

    @property
    def conditions(self) -> list[tuple[str, float]]:
        """`(method, retention)` of all rows, the first uncompressed."""
        return conditions_of(self.choosers, self.retentions)

    def run(
        self,
        samples: Sequence[TrainingSample],
        *,
        done: Mapping[str, Result] | None = None,
        timed: int = 0,
        share: tuple[int, int] = (0, 1),
        on_result: Callable[[Result], Any] = lambda result: None,
    ) -> dict[str, Result]:
        """Results by the questions' ids.

        Args:
            samples: All questions.
            done: Results of an earlier run; those questions are not asked again.
            timed: So many videos' first questions are timed, each on its own.
            share: `(rank, processes)`: this process takes every `processes`-th video.
            on_result: Called with each new result of this process.
        """
        found = dict(done or {})
        groups = by_video(samples)
        to_time = {numbers[0] for numbers in groups[:timed]} if self.time is not None else set()
        for numbers in groups[share[0] :: share[1]]:
            left = [n for n in numbers if samples[n].id not in found]
            for result in self._group(samples, left, to_time):
                found[result.id] = result
                on_result(result)
        return found

    @torch.no_grad()
    def _group(
        self, samples: Sequence[TrainingSample], numbers: Sequence[int], to_time: Collection[int]
    ) -> list[Result]:
        prepared: list[PreparedSample] = []
        times: dict[int, Times] = {}
        try:
            for number in numbers:
                prepared.append(self.encoder(samples[number]))
                if number in to_time and self.time is not None:
                    times[number] = self.time(samples[number], self._seed_of(number))
        except VideoReadError as error:
            return [_result(samples[n], unreadable=str(error)) for n in numbers]
        requests = [
            Request(one, chosen.selection, chosen.hook)
            for one, number in zip(prepared, numbers, strict=True)
            for chosen in self._choices(one, number)
        ]
        replies = self.answerer(requests)
        width = len(self.conditions)
        return [
            _result(
                samples[number],
                replies=tuple(replies[place * width : (place + 1) * width]),
                seconds=times.get(number, ()),
            )
            for place, number in enumerate(numbers)
        ]

    def _seed_of(self, number: int) -> int:
        return self.seed * 1_000_003 + number

    def _choices(self, prepared: PreparedSample, number: int) -> list[Chosen]:
        everything = Chosen(keep_all(prepared.prompt.grid, prepared.prompt.embeds.device))
        chosen = [
            one
            for chooser in self.choosers
            for one in chooser(prepared, self.retentions, self._seed_of(number))
        ]
        return [everything, *chosen]


def keep_all(grid: Grid, device: torch.device) -> Selection:
    """The selection of all tokens."""
    keep = torch.arange(grid.num_tokens, device=device)
    return Selection(keep, grid, grid.tokens_per_video)


def _result(sample: TrainingSample, **found: Any) -> Result:
    return Result(sample.id, sample.kind, sample.video_key, **found)
