"""A comparison as rows, a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cacovid.evaluation.compare import Comparison, Condition
from cacovid.synthetic.tiny.evaluate import interval


def result_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One dictionary per row, as `cacovid eval --json` prints them.

    `low` and `high`: 95% interval of the accuracy by bootstrap over questions. `against`: the
    difference to uncompressed, paired, with its own interval. `seconds`: median time of scoring
    and choosing.
    """
    full = np.array(comparison.conditions[0].marks)
    rows = []
    for condition in comparison.conditions:
        marks = np.array(condition.marks)
        low, high = interval(marks)
        below, above = interval(marks, full)
        rows.append(
            {
                "method": condition.method,
                "retention": condition.retention,
                "accuracy": condition.accuracy,
                "low": low,
                "high": high,
                "against": {
                    "difference": float((marks - full).mean()),
                    "low": below,
                    "high": above,
                },
                "tokens": float(np.mean(condition.tokens)),
                "seconds": {"score+select": float(np.median(condition.seconds))},
                "by_type": by_type(comparison, condition),
            }
        )
    return rows


def by_type(comparison: Comparison, condition: Condition) -> dict[str, float]:
    """Accuracy of each question type."""
    kinds = np.array(comparison.kinds)
    marks = np.array(condition.marks)
    return {str(kind): float(marks[kinds == kind].mean()) for kind in sorted(set(kinds)) if kind}


def table(comparison: Comparison, retentions: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: methods down, retentions across, accuracy with half its interval."""
    columns = ["method", *(f"{r:.0%}" for r in (1.0, *retentions))]
    names = list(dict.fromkeys(c.method for c in comparison.conditions[1:]))
    full = _cell(comparison.conditions[0])
    return columns, [
        [name, full, *(_cell(comparison.find(name, r)) for r in retentions)] for name in names
    ]


def _cell(condition: Condition) -> str:
    marks = np.array(condition.marks)
    low, high = interval(marks)
    return f"{100 * condition.accuracy:.1f} ±{50 * (high - low):.1f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
