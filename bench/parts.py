"""Answers of many methods to the same questions, gathered in parts that outlast a stop.

A part holds some methods at some retentions, in a folder of `cacovid.evaluation.records`; its
header names them, with the version of each (of a trained policy: its weights' hash) and of the
model. What is asked for again is read; what no part has is a new part. So a table grows by the
runs that finished since, and by further questions, without answering anything twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacovid.evaluation.choosers import Chooser
from cacovid.evaluation.compare import UNCOMPRESSED, Comparison, Evaluator, Result
from cacovid.evaluation.records import HEADER, Records
from cacovid.train.data import TrainingSample

#: Makes what answers: of choosers, at retentions.
MakeEvaluator = Callable[[Sequence[Chooser], Sequence[float]], Evaluator]


@dataclass(frozen=True)
class Row:
    """A method as a table asks for it.

    Args:
        chooser: What chooses; its name is the row's.
        retentions: Shares kept.
        version: What its answers depend on besides its name.
    """

    chooser: Chooser
    retentions: tuple[float, ...]
    version: str = ""


@dataclass
class Part:
    """Answers on disk.

    Args:
        folder: Where.
        header: What they depend on.
    """

    folder: Path
    header: dict[str, Any]

    @property
    def versions(self) -> Mapping[str, str]:
        """Version of each method, by its name."""
        return dict(self.header["versions"])

    @property
    def retentions(self) -> list[float]:
        """Shares kept, of every method of the part."""
        return [float(r) for r in self.header["retentions"]]

    def covers(self, row: Row, retention: float) -> bool:
        """Whether it is the place of a row at a retention."""
        same = self.versions.get(row.chooser.name) == row.version
        return same and retention in self.retentions

    def read(self) -> dict[str, Result]:
        """The answers there are, by question."""
        return Records(self.folder, self.header).read()


@dataclass
class Parts:
    """The parts of one set of questions.

    Args:
        folder: Holds a folder per part.
        common: What the answers of all of them depend on; parts of others are passed over.
    """

    folder: Path
    common: dict[str, Any]

    def gather(
        self,
        rows: Sequence[Row],
        samples: Sequence[TrainingSample],
        make: MakeEvaluator,
        share: tuple[int, int] = (0, 1),
        on_result: Callable[[int, int], Any] = lambda done, of: None,
    ) -> Comparison | None:
        """Answers what is not answered yet, and puts all rows together.

        Args:
            rows: What is asked for.
            samples: The questions.
            make: Makes what answers.
            share: `(rank, processes)`: this process takes every `processes`-th video; start all
                of them with the same arguments.
            on_result: Called with `(answered, all)` questions of this process and part.

        Returns:
            The rows in their order; None while other processes still have questions.
        """
        parts = self.plan(rows, samples)
        for part in parts:
            self._answer(part, rows, samples, make, share, on_result)
        found = [part.read() for part in parts]
        if any(sample.id not in results for results in found for sample in samples):
            return None
        return _together(parts, found, rows, samples)

    def plan(self, rows: Sequence[Row], samples: Sequence[TrainingSample]) -> list[Part]:
        """Parts that hold all rows: of those on disk what serves, and new ones for the rest."""
        by_name = {row.chooser.name: row for row in rows}
        parts = []
        for part in self._on_disk():
            serves = any(part.covers(row, r) for row in rows for r in row.retentions)
            complete = {sample.id for sample in samples} <= set(part.read())
            known = all(
                name in by_name and by_name[name].version == version
                for name, version in part.versions.items()
            )
            if serves and (complete or known):
                parts.append(part)
        missing: dict[tuple[float, ...], dict[str, str]] = {}
        for row in rows:
            left = [r for r in row.retentions if not any(part.covers(row, r) for part in parts)]
            if left:
                missing.setdefault(tuple(left), {})[row.chooser.name] = row.version
        return parts + [self._new(versions, left) for left, versions in missing.items()]

    def _on_disk(self) -> Iterator[Part]:
        for path in sorted(self.folder.glob(f"*/{HEADER}")):
            header = json.loads(path.read_text())
            if header["common"] == json.loads(json.dumps(self.common)):
                yield Part(path.parent, header)

    def _new(self, versions: Mapping[str, str], retentions: Sequence[float]) -> Part:
        header = {
            "common": self.common, "versions": dict(versions), "retentions": list(retentions)
        }  # fmt: skip
        name = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
        return Part(self.folder / name, header)

    def _answer(
        self, part: Part, rows: Sequence[Row], samples: Sequence[TrainingSample],
        make: MakeEvaluator, share: tuple[int, int], on_result: Callable[[int, int], Any],
    ) -> None:  # fmt: skip
        records = Records(part.folder, part.header, share[0])
        records.mend()
        there = records.read()
        if all(sample.id in there for sample in samples):
            return
        # In the header's order: the records have no names of their own.
        by_name = {row.chooser.name: row.chooser for row in rows}
        evaluator = make([by_name[name] for name in part.versions], part.retentions)
        count = 0

        def keep(result: Result) -> None:
            nonlocal count
            records.add(result)
            count += 1
            on_result(count, -(-(len(samples) - len(there)) // share[1]))

        evaluator.run(samples, done=there, share=share, on_result=keep)


def _together(
    parts: Sequence[Part],
    found: Sequence[Mapping[str, Result]],
    rows: Sequence[Row],
    samples: Sequence[TrainingSample],
) -> Comparison:
    """The rows' cells, each from the first part that has it, as one comparison."""
    conditions, cells = [(UNCOMPRESSED, 1.0)], [(0, 0)]
    for row in rows:
        for retention in row.retentions:
            number = next(n for n, part in enumerate(parts) if part.covers(row, retention))
            names = list(parts[number].versions)
            width = len(parts[number].retentions)
            place = names.index(row.chooser.name) * width
            place += parts[number].retentions.index(retention)
            conditions.append((row.chooser.name, retention))
            cells.append((number, 1 + place))
    results = []
    for sample in samples:
        own = [answers[sample.id] for answers in found]
        replies = tuple(own[number].replies[place] for number, place in cells)
        results.append(Result(own[0].id, own[0].kind, own[0].video, replies=replies))
    return Comparison.of(conditions, results)
