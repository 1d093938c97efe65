"""`cacovid eval`: ways of choosing tokens, compared on the same questions."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import (
    SHOWN_ROWS,
    UsageError,
    check_at_least,
    check_retentions,
    show_table,
    write_json,
    write_line,
)
from cacovid.commands.progress import steps_bar
from cacovid.commands.questions import QuestionsCommand, policies_of

SPLIT = ("test",)
#: What is compared where nothing is said; the oracles are of the embedded task only.
DEFAULT_METHODS = ("random", "uniform", "attention", "attention:2:question")
EMBEDDED_METHODS = (
    "random", "uniform", "attention", "attention:0", "attention:0:question", "attention:2",
    "attention:2:question", "blind-oracle", "oracle",
)  # fmt: skip


@dataclass(kw_only=True)
class Eval(QuestionsCommand):
    """Compare ways of choosing tokens on the same questions.

    Tells accuracy with 95% intervals (bootstrap over videos, paired against uncompressed), kept
    share, tokens that enter the language model, agreement with the uncompressed answers, and time
    by stage. With --output a stopped run goes on where it was, and several processes share it.

    Examples: cacovid eval --embedded --limit 500

    cacovid eval --data questions.csv --model DIR --methods all --output runs/mine

    cacovid eval --embedded --split test shifted --methods all --draws 3 --by-type

    accelerate launch -m cacovid eval --data questions.json --model DIR --output runs/mine
    """

    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()
    """Methods, or directories or Hub ids of policies; "all" is every method that can run on the
    model; "cacovid" is the policy beside the model, "cacovid:NAME" another one there; "oracle",
    "blind-oracle" and "blind-oracle-in-turn" know the embedded task's truth. Default: the policies
    beside the model, random, uniform, attention (with --embedded of several layers, by the last
    token and by the question), and the oracles."""
    retention: tuple[float, ...] = (0.25, 0.2, 0.15, 0.1, 0.05)
    """Shares of the tokens to keep."""
    split: Annotated[
        tuple[str, ...], arg(metavar="test|shifted|validation ...", help_behavior_hint="")
    ] = SPLIT
    """Sets of the embedded task, each with tables of its own (and with --output its own folder,
    where there are several). Default: test."""
    draws: int = 1
    """Methods in which chance plays (random, the oracles) are asked so many times, each with random
    numbers of its own; their figures are means."""
    by_type: bool = False
    """Print a table of question types for each share too; with --output it is always written."""
    timed: int = 8
    """On so many videos one question is asked once more for each method and retention, on its own,
    and timed by stage. 0: no times."""
    output: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Keep all answers there, and write the table (Markdown), CSV, JSON and plots; a run that was
    stopped goes on from there."""

    def run(self) -> None:
        """Compares, and prints the table."""
        self._check()
        from cacovid.evaluation.processes import Processes

        processes = Processes()
        if processes.count > 1 and self.output is None:
            raise UsageError("several processes share results in a folder; give --output DIR")
        qa, sets = self.load(processes.device(self.device), *self.split)
        found: dict[str, dict[str, Any]] = {}
        for split, samples in zip(self.split, sets, strict=True):
            run, comparison = self._compare(qa, samples, split, processes)
            if processes.is_main:
                found[split] = self._facts(run, comparison, split)
                self._report(found[split], self._folder(split))
        processes.close()
        if processes.is_main and self.json:
            write_json(found[self.split[0]] if len(found) == 1 else {"sets": found})

    def _compare(self, qa: Any, samples: Any, split: str, processes: Any) -> tuple[Any, Any]:
        """The run on one set, and what it found."""
        from cacovid.evaluation.records import Records
        from cacovid.evaluation.session import EvaluationRun

        run = EvaluationRun(
            qa, samples, self.methods or self._defaults(policies_of(qa)), self.retention,
            self.seed, self.timed, self.max_new_tokens, self.embedded, self.draws,
        )  # fmt: skip
        run.prepare()
        if processes.is_main and split == self.split[0]:
            for name, reason in run.left_out.items():
                sys.stderr.write(f"left out method {name}: {reason}\n")
        records = None
        if (folder := self._folder(split)) is not None:
            records = Records(folder, run.header(self.data_name(split)), processes.rank)
        with steps_bar("Answering", len(run.samples)) as bar:
            comparison = run.run(
                processes, records, lambda done: bar.step(min(done, len(run.samples)), None)
            )
        return run, comparison

    def _folder(self, split: str) -> Path | None:
        """Where results on a set go."""
        if self.output is None or len(self.split) == 1:
            return self.output
        return self.output / split

    def _check(self) -> None:
        self.check_questions(*self.split)
        if not self.split or len(set(self.split)) < len(self.split):
            raise UsageError("--split names no set, or one twice; name each once")
        if self.data is not None and self.split != SPLIT:
            raise UsageError("--split names sets of the embedded task; leave it out with --data")
        check_at_least(self.draws, 1, "--draws")
        check_retentions(self.retention)
        check_at_least(self.timed, 0, "--timed")
        if self.output is not None and self.output.exists() and not self.output.is_dir():
            raise UsageError(f"--output: {self.output} is a file; expected a folder")
        if self.output is not None:
            from cacovid.evaluation.plots import check_plots

            check_plots()

    def _defaults(self, policies: tuple[str, ...]) -> tuple[str, ...]:
        return (*policies, *(EMBEDDED_METHODS if self.embedded else DEFAULT_METHODS))

    def _facts(self, run: Any, comparison: Any, split: str) -> dict[str, Any]:
        """All that there is to say; what was left out is told on standard error."""
        from cacovid.evaluation.results import result_rows

        facts = {
            "results": result_rows(comparison),
            "questions": len(comparison.kinds),
            "types": dict(sorted(Counter(kind for kind in comparison.kinds if kind).items())),
            "model": self.model,
            "data": self.data_name(split),
            "videos": len(set(comparison.videos)),
            "draws": self.draws,
            "left_out": {
                "rows": dict(run.samples.skipped),
                "videos": comparison.unreadable,
                "methods": run.left_out,
            },
        }
        for number, (id, reason) in enumerate(comparison.unreadable.items()):
            if number == SHOWN_ROWS:
                sys.stderr.write(f"and {len(comparison.unreadable) - number:,} questions more\n")
                break
            sys.stderr.write(f"left out question {id}: {reason}\n")
        return facts

    def _report(self, facts: dict[str, Any], folder: Path | None) -> None:
        """Writes and prints the results on one set."""
        from cacovid.evaluation.results import DETAILS, details, table, types_table

        rows = facts["results"]
        if folder is not None:
            self._write(facts, folder)
        if self.json:
            return
        if len(self.split) > 1:
            write_line(facts["data"])
        show_table(*table(rows, self.retention))
        show_table(DETAILS, details(rows))
        if self.by_type:
            for retention in self.retention:
                write_line(f"by question type, {100 * retention:.4g}% kept")
                show_table(*types_table(rows, retention, facts["types"]))
        for line in self._notes(facts):
            write_line(line)
        if folder is not None:
            write_line(f"written: {folder}")

    def _notes(self, facts: dict[str, Any]) -> list[str]:
        """What the tables say, in words."""
        from cacovid.evaluation.statistics import FEWEST_VIDEOS

        left = facts["left_out"]
        asked = f"{facts['questions']:,} questions on {facts['videos']:,} videos ({self.data_note})"
        against = (
            "against 100%: paired, in points; same answers: share of the uncompressed model's, in "
            "percent"
        )
        if facts["results"][0]["low"] is not None:
            out = [
                f"{asked}; ±: half of the 95% interval",
                f"intervals by bootstrap over videos; {against}",
            ]
        else:
            out = [
                f"{asked}; no intervals: from fewer than {FEWEST_VIDEOS} videos they say nothing",
                against,
            ]
        drawn = {row["method"] for row in facts["results"] if row["draws"]}
        if drawn:
            out.append(f"means of {facts['draws']} draws: {', '.join(sorted(drawn))}")
        if self.timed:
            out.append(
                f"times in ms, medians over {min(self.timed, facts['videos'])} questions asked on "
                f"their own; first token: reading, vision, choosing and prefill together"
            )
        for what, rows in (("rows", left["rows"]), ("questions without a video", left["videos"])):
            if rows:
                out.append(f"left out: {len(rows):,} {what}")
        return out

    def _write(self, facts: dict[str, Any], folder: Path) -> None:
        from cacovid.evaluation.plots import draw_pareto
        from cacovid.evaluation.results import (
            DETAILS,
            csv_text,
            details,
            markdown,
            table,
            types_table,
        )
        from cacovid.files import write_text

        rows, types = facts["results"], facts["types"]
        by_type = [
            f"{100 * retention:.4g}% kept, by question type (questions):\n\n"
            + markdown(*types_table(rows, retention, types))
            for retention in (self.retention if types else ())
        ]
        page = "\n".join(
            [
                f"# {self.model} on {facts['data']}",
                "",
                "\n".join(f"- {line}" for line in self._notes(facts)),
                "",
                markdown(*table(rows, self.retention)),
                *by_type,
                markdown(DETAILS, details(rows)),
            ]
        )
        write_text(folder / "results.md", page)
        write_text(folder / "results.csv", csv_text(rows))
        write_text(folder / "results.json", json.dumps(facts, indent=1) + "\n")
        title = f"{self.model} on {facts['data']}, {facts['questions']:,} questions"
        if self.embedded:
            title += " (synthetic task; no public benchmark run)"
        draw_pareto(rows, title, folder)
