"""Pictures of what was measured: time against tokens with the floor, and speed-up bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacovid.errors import MissingDependencyError

#: Colours that are told apart by people who see red and green alike.
COLOURS = {
    "published": "#7f7f7f",
    "eager": "#e69f00",
    "compiled": "#cc79a7",
    "bare": "#56b4e9",
    "ours": "#0072b2",
}
_STYLES = ("-", "--", ":")


def draw(rows: Sequence[dict[str, Any]], title: str, folder: Path) -> list[Path]:
    """Draws one picture for each op, and one of all speed-ups.

    Args:
        rows: As `report.records` returns them.
        title: What was measured on.
        folder: Made if it is not there.

    Returns:
        The files.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingDependencyError("--plots needs matplotlib; install cacovid[viz]") from error
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for op in dict.fromkeys(row["op"] for row in rows):
        path = folder / f"{op}.png"
        _times(plt, [row for row in rows if row["op"] == op], f"{op} — {title}", path)
        files.append(path)
    path = folder / "speed-up.png"
    _bars(plt, rows, title, path)
    return [*files, path]


def _times(plt: Any, rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    widths = sorted({row["hidden"] for row in rows})
    figure, axes = plt.subplots(
        1, len(widths), figsize=(1.8 + 4.2 * len(widths), 4.6), sharey=False, squeeze=False,
        constrained_layout=True,
    )  # fmt: skip
    for axis, width in zip(axes[0], widths, strict=True):
        own = [row for row in rows if row["hidden"] == width]
        seen: dict[str, int] = {}
        for name in dict.fromkeys(row["provider"] for row in own):
            points = sorted((r for r in own if r["provider"] == name), key=lambda r: r["tokens"])
            role = points[0]["role"]
            style = _STYLES[seen.get(role, 0) % len(_STYLES)]
            seen[role] = seen.get(role, 0) + 1
            x, y = [p["tokens"] for p in points], [p["median_us"] for p in points]
            axis.plot(x, y, style, marker="o", color=COLOURS[role], label=name)
            low, high = [p["p20_us"] for p in points], [p["p80_us"] for p in points]
            axis.fill_between(x, low, high, color=COLOURS[role], alpha=0.15, linewidth=0)
        floor = sorted({(row["tokens"], row["floor_us"]) for row in own})
        axis.plot(*zip(*floor, strict=True), "k:", marker="_", label="floor of this device")
        axis.set(xscale="log", yscale="log", xlabel="video tokens N")
        times = [row["median_us"] for row in own] + [y for _, y in floor]
        axis.set_ylim(*_decades(times))
        axis.set_xticks([x for x, _ in floor], [f"{x:,}" for x, _ in floor], rotation=20)
        axis.minorticks_off()
        axis.grid(True, which="major", alpha=0.3)
        axis.set_title(f"D = {width:,}" if width else own[0]["dtype"], fontsize=10)
    axes[0][0].set_ylabel("median time, µs (band: p20 to p80)")
    figure.suptitle(title, fontsize=10, wrap=True)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Whole powers of ten around positive values, so that the axis has figures to read."""
    positive = [value for value in values if value > 0]
    low = math.floor(math.log10(min(positive)))
    return 10.0**low, 10.0 ** max(low + 1, math.ceil(math.log10(max(positive))))


def _bars(plt: Any, rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """The time of every other way over ours, each op at its smallest size."""
    bars: list[tuple[str, float, str]] = []
    for op in dict.fromkeys(row["op"] for row in rows):
        own = [row for row in rows if row["op"] == op]
        size = min((row["tokens"], row["hidden"]) for row in own)
        for row in own:
            if (row["tokens"], row["hidden"]) == size and row["role"] != "ours":
                at = f"{op}, N = {size[0]:,}" + (f", D = {size[1]:,}" if size[1] else "")
                bars.append((f"{at}: {row['provider']}", row["times_ours"], row["role"]))
    figure, axis = plt.subplots(figsize=(10, 1.2 + 0.3 * len(bars)), constrained_layout=True)
    places = range(len(bars), 0, -1)
    # From 1: to the right what is slower than ours, to the left what is faster.
    widths = [value - 1.0 for _, value, _ in bars]
    axis.barh(places, widths, left=1.0, color=[COLOURS[r] for _, _, r in bars])
    axis.set_yticks(places, [name for name, _, _ in bars], fontsize=8)
    for place, (_, value, _) in zip(places, bars, strict=True):
        axis.text(max(value, 1.0) * 1.06, place, f"{value:,.3g}×", va="center", fontsize=8)
    axis.axvline(1.0, color=COLOURS["ours"])
    most = max([value for _, value, _ in bars], default=1.0)
    least = min([value for _, value, _ in bars], default=1.0)
    axis.set(xscale="log", xlim=(min(0.5, least / 1.5), max(2.0, most * 2.5)))
    axis.set_xlabel("time over that of cacovid, in the same run")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
