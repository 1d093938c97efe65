"""A comparison as rows, tables, CSV and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cacovid.evaluation.compare import Comparison, Condition
from cacovid.evaluation.statistics import Bootstrap
from cacovid.evaluation.trials import STAGES, first_token


def result_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One dictionary per row, as `cacovid eval --json` prints them.

    - `accuracy`, and `low` and `high`, its 95% interval by bootstrap over videos; None from fewer
      than 10 videos (`cacovid.evaluation.statistics.FEWEST_VIDEOS`), whose draws say nothing;
    - `against`: the difference to uncompressed, paired, with its own interval or None;
    - `tokens`: mean kept video tokens (of methods inside the language model: averaged over its
      layers); `share`: mean kept share of them; `entering`: mean tokens
      that enter the language model, text included;
    - `agreement`: share of answers that are the uncompressed model's;
    - `seconds`: medians by stage over the timed questions (empty without any): `read`, `vision`,
      `compress`, `prefill`, `decode`, and `first_token`, all but the last together;
    - `by_type`: accuracy of each question type;
    - `draws`: of a row that is the mean of several draws of a method, their `count`, and the
      `lowest` and `highest` accuracy (else empty).
    """
    full = np.array(comparison.conditions[0].marks)
    drawn = Bootstrap(comparison.videos)
    rows = []
    for condition in comparison.conditions:
        marks = np.array(condition.marks)
        low, high = drawn.interval(marks) if drawn.enough else (None, None)
        below, above = drawn.interval(marks - full) if drawn.enough else (None, None)
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
                "share": float(np.mean(condition.shares)),
                "entering": float(np.mean(condition.entering)),
                "agreement": float(np.mean(condition.same)),
                "seconds": median_seconds(condition),
                "by_type": by_type(comparison, condition),
                "draws": _draws(condition),
            }
        )
    return rows


def median_seconds(condition: Condition) -> dict[str, float]:
    """Medians by stage over the timed questions, and of the time to the first token."""
    timed = condition.seconds
    if not timed:
        return {}
    out = {stage: float(np.median([t.get(stage, 0.0) for t in timed])) for stage in STAGES}
    out["first_token"] = float(np.median([first_token(t) for t in timed]))
    return out


def _draws(condition: Condition) -> dict[str, float]:
    if not condition.parts:
        return {}
    low, high = min(condition.parts), max(condition.parts)
    return {"count": len(condition.parts), "lowest": low, "highest": high}


def by_type(comparison: Comparison, condition: Condition) -> dict[str, float]:
    """Accuracy of each question type."""
    kinds = np.array(comparison.kinds)
    marks = np.array(condition.marks)
    return {str(kind): float(marks[kinds == kind].mean()) for kind in sorted(set(kinds)) if kind}


def table(
    rows: Sequence[dict[str, Any]], retentions: Sequence[float]
) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: methods down, retentions across, accuracy with half its interval.

    Args:
        rows: As `result_rows` returns them, the first uncompressed.
        retentions: What stands across.
    """
    by = {(row["method"], row["retention"]): row for row in rows}
    columns = ["method", *(f"{r:.4g}%" for r in (100.0, *(100 * r for r in retentions)))]
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    full = accuracy_text(rows[0])
    return columns, [
        [name, full, *(accuracy_text(by[name, r]) for r in retentions)] for name in names
    ]


def types_table(
    rows: Sequence[dict[str, Any]], retention: float, counts: Mapping[str, int]
) -> tuple[list[str], list[list[str]]]:
    """Columns and cells at one retention: methods down, question types across, accuracy.

    Args:
        rows: As `result_rows` returns them, the first uncompressed.
        retention: Which rows are shown, besides the first.
        counts: How many questions there are of each type.
    """
    columns = ["method", *(f"{kind} ({count:,})" for kind, count in counts.items())]
    shown = [row for row in rows if row is rows[0] or row["retention"] == retention]
    return columns, [
        [row["method"], *(f"{100 * row['by_type'][kind]:.1f}" for kind in counts)] for row in shown
    ]


#: Headings of `details`.
DETAILS = (
    "method", "kept (tokens)", "accuracy", "against 100%", "same answers", "tokens in",
    *STAGES, "first token",
)  # fmt: skip


def details(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Cells of the long table, under `DETAILS`: one line per condition, times in milliseconds.

    Args:
        rows: As `result_rows` returns them, the first uncompressed.
    """
    lines = []
    for row in rows:
        against, seconds = row["against"], row["seconds"]
        times = [
            f"{1000 * seconds[name]:.1f}" if seconds else "–"
            for name in (*STAGES, "first_token")
        ]
        difference = f"{100 * against['difference']:+.1f}"
        if against["low"] is not None:
            difference += f" [{100 * against['low']:+.1f}, {100 * against['high']:+.1f}]"
        lines.append(
            [
                row["method"],
                f"{100 * row['retention']:.4g}% ({row['tokens']:,.0f})",
                accuracy_text(row),
                difference if row is not rows[0] else "–",
                f"{100 * row['agreement']:.1f}",
                f"{row['entering']:,.0f}",
                *times,
            ]
        )
    return lines


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """All figures as CSV, one line per condition; nested ones have names joined by a full stop.

    What is None is empty.
    """
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def accuracy_text(row: Mapping[str, Any]) -> str:
    """Accuracy in percent, with half its interval where the row has one.

    >>> accuracy_text({"accuracy": 0.5, "low": 0.4, "high": 0.62})
    '50.0 ±11.0'
    >>> accuracy_text({"accuracy": 0.5, "low": None, "high": None})
    '50.0'
    """
    accuracy = f"{100 * row['accuracy']:.1f}"
    if row["low"] is None:
        return accuracy
    return f"{accuracy} ±{50 * (row['high'] - row['low']):.1f}"


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
