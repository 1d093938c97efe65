"""Pareto plots: accuracy against tokens, and against time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacovid.errors import MissingDependencyError
from cacovid.evaluation.choosers import ORACLES

#: Colours told apart by most eyes; markers tell the rest apart.
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c3d99", "#8c564b",
)  # fmt: skip
_MARKERS = "os^Dv<>Pp"
_TOKENS = "tokens that enter the language model (mean); methods with the same number side by side"


def check_plots() -> None:
    """Refuses plots that could not be drawn, before anything is measured.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib; install cacovid[viz]") from error


def draw_pareto(rows: Sequence[dict[str, Any]], title: str, folder: Path) -> list[Path]:
    """Draws accuracy against the tokens that enter the language model, and against time.

    Accuracies have bars of their intervals, where there are any.

    Args:
        rows: As `result_rows` returns them, the first uncompressed.
        title: What was measured.
        folder: Made if it is not there; gets `accuracy-tokens.png`, and `accuracy-time.png` where
            times were measured.

    Returns:
        The files.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    check_plots()
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    wanted = [("accuracy-tokens.png", "entering", _TOKENS)]
    if rows[0]["seconds"]:
        wanted.append(("accuracy-time.png", "first_token", "time to the first token, ms (median)"))
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    files = []
    for file, what, label in wanted:
        figure = Figure(figsize=(9.5, 5.6), layout="constrained")
        # Of what knows the truth, the time is that of finding it out.
        shown = [r for r in rows if what == "entering" or r["method"] not in ORACLES]
        _draw(figure.subplots(), shown, what, names)
        figure.axes[0].set(xlabel=label, ylabel="accuracy, %")
        figure.suptitle(title, fontsize=10, wrap=True)
        path = folder / file
        figure.savefig(path, dpi=130)
        files.append(path)
    return files


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats: fewer `x` and at least as much `y`, ascending.

    >>> front([(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (4.0, 0.9)])
    [(1.0, 0.5), (3.0, 0.9)]
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _draw(axis: Any, rows: Sequence[dict[str, Any]], what: str, names: Sequence[str]) -> None:
    """Draws rows; a method looks the same in all plots, by its place in `names`."""

    def place(row: dict[str, Any]) -> tuple[float, float]:
        x = row["entering"] if what == "entering" else 1000 * row["seconds"]["first_token"]
        return x, 100 * row["accuracy"]

    # What knows the truth is no way to go.
    best = front([place(row) for row in rows if row["method"] not in ORACLES])
    best.append((max(place(row)[0] for row in rows), best[-1][1]))
    axis.step(*zip(*best, strict=True), where="post", color="0.8", lw=6, zorder=0,
              solid_capstyle="butt", label="Pareto front, without oracles")  # fmt: skip
    x, y = place(rows[0])
    axis.axhline(y, color="0.4", lw=1, ls=":", zorder=1)
    axis.plot([x], [y], marker="*", ms=15, color="black", ls="", label="uncompressed", zorder=3)
    for number, name in enumerate(names):
        own = sorted((r for r in rows[1:] if r["method"] == name), key=lambda r: r["retention"])
        if not own:
            continue
        # Methods with the same tokens stand side by side, not on each other.
        beside = 1 + 0.008 * (number - (len(names) - 1) / 2) if what == "entering" else 1.0
        points = [(x * beside, y) for x, y in map(place, own)]
        bars = None
        if all(row["low"] is not None for row in own):
            bars = (
                [100 * (row["accuracy"] - row["low"]) for row in own],
                [100 * (row["high"] - row["accuracy"]) for row in own],
            )
        axis.errorbar(
            *zip(*points, strict=True), yerr=bars,
            label=name, lw=1.4, ms=5, elinewidth=0.7, alpha=0.9, zorder=2,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[(number + 3 * (number // len(_COLOURS))) % len(_MARKERS)],
            ls=("-", "--", ":")[number // len(_COLOURS) % 3],
        )  # fmt: skip
    places = [place(row)[0] for row in rows]
    if max(places) > 4 * min(places):
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        steps = [step * 10.0**power for power in range(-1, 8) for step in (1, 2, 5)]
        ticks = [step for step in steps if low <= step <= high]
        axis.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
        axis.minorticks_off()
    axis.grid(True, alpha=0.25)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=8, frameon=False)
