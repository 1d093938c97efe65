"""The page `bench/results/tiny-model.md`: what the embedded model can do, and the gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cacovid.files import write_text
from cacovid.synthetic import world
from cacovid.synthetic.questions import QUESTION_TYPES
from cacovid.synthetic.tiny import evaluate
from cacovid.synthetic.tiny.choices import CHOICES
from cacovid.synthetic.tiny.evaluate import TestSet

RETENTIONS = (0.25, 0.10, 0.05)

_SETTING = (
    "Synthetic task (version {version}); no public benchmark run. Made by `{command}`. Accuracy in "
    "percent, the first word of the answer against the right one; in brackets the 95% interval "
    "(bootstrap over questions). `test`: scenes never trained on. `shifted`: also other "
    "backgrounds and wordings. Half of the questions are multiple choice, half open."
)
_ROWS = (
    "*oracle* keeps the asked-about objects' tokens and fills up at random. *blind oracle: any "
    "object* keeps random tokens among those that show some object. *every object in turn* is "
    "stronger: it is told which token belongs to which object and keeps the best token of each, "
    "then the second best, and so on; no method knows this. *no video*: the question alone. "
    "*commonest answer*: always the most frequent answer to the type and form."
)


@dataclass
class Table:
    """Right or wrong for every question, under every condition (a row of the page)."""

    test: TestSet
    right: dict[str, np.ndarray]

    def mean(self, row: str, mask: np.ndarray | None = None) -> float:
        """Share of right answers, of some questions."""
        values = self.right[row]
        return float((values if mask is None else values[mask]).mean())


def measure(model: Any, tokenizer: Any, test: TestSet) -> Table:
    """Runs every condition on a test set."""
    true = evaluate.truth(tokenizer, test)

    def right(keep: list[np.ndarray]) -> np.ndarray:
        return evaluate.answers(model, tokenizer, test, keep) == true

    everything = np.arange(world.CLIP_TOKENS)
    rows = {
        "uncompressed": right([everything] * len(test.asked)),
        "no video": right([everything[:0]] * len(test.asked)),
        "commonest answer": evaluate.majority(test),
    }
    for retention in RETENTIONS:
        for name, choice in CHOICES.items():
            rows[row_name(name, retention)] = right(evaluate.kept_by(choice, test, retention))
    return Table(test, rows)


def row_name(choice: str, retention: float) -> str:
    """The row of a choice at a retention."""
    return f"{choice}, {retention:.0%}"


@dataclass(frozen=True)
class GateLine:
    """One condition that the task has to fulfil before a policy is measured on it."""

    said: str
    loss: float
    low: float
    high: float
    passed: bool


def gate(table: Table) -> list[GateLine]:
    """The conditions at 10%, on the question types that need question-awareness (points lost)."""
    mask = evaluate.needs_question(table.test)
    full = table.right["uncompressed"][mask]
    lines = []
    for choice, said, least in (
        ("random", "random loses at least 15 points", 15.0),
        ("oracle: asked object", "the oracle loses at most 3 points", None),
        ("blind oracle: any object", "a question-blind oracle loses at least 15 points", 15.0),
    ):
        kept = table.right[row_name(choice, 0.10)][mask]
        low, high = evaluate.interval(full, kept)
        loss = 100.0 * float(full.mean() - kept.mean())
        passed = loss >= least if least is not None else loss <= 3.0
        lines.append(GateLine(said, loss, 100 * low, 100 * high, passed))
    return lines


def render(tables: dict[str, Table], command: str, agreement: str) -> str:
    """The page in Markdown."""
    lines = [
        "# The embedded model on its test sets",
        "",
        _SETTING.format(version=world.TASK_VERSION, command=command),
        "",
        _ROWS,
        "",
        f"Against the ordinary way (file, processor, chat template, `generate`): {agreement}",
    ]
    for split, table in tables.items():
        size = f"{len(table.test.asked):,} questions on {len(table.test.scenes)} clips"
        lines += ["", f"## {split}: {size}", "", *_gate_table(table), "", *_table(table)]
    return "\n".join(lines) + "\n"


def _gate_table(table: Table) -> list[str]:
    lines = [
        "| the gate, at 10%, on types that need question-awareness | points lost | |",
        "|---|---|---|",
    ]
    for line in gate(table):
        verdict = "passed" if line.passed else "**failed**"
        lines.append(
            f"| {line.said} | {line.loss:.1f} [{line.low:.1f}, {line.high:.1f}] | {verdict} |"
        )
    return lines


def _table(table: Table) -> list[str]:
    types = table.test.types
    names = [name for name in QUESTION_TYPES if (types == name).any()]
    aware = evaluate.needs_question(table.test)
    head = ["kept", "all types", "question-dependent", *names]
    counts = ["questions", str(len(types)), str(int(aware.sum()))]
    counts += [str(int((types == name).sum())) for name in names]
    lines = [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        "| " + " | ".join(counts) + " |",
    ]
    for row, right in table.right.items():
        low, high = evaluate.interval(right[aware])
        cells = [
            row,
            f"{100 * right.mean():.1f}",
            f"{100 * table.mean(row, aware):.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        ]
        cells += [f"{100 * table.mean(row, types == name):.1f}" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_page(path: Path, text: str) -> None:
    """Writes the page whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
