"""What was measured, as records, a CSV file and rows of a table."""

from __future__ import annotations

import csv
import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cacovid._version import __version__
from cacovid.benchmark.ceilings import Ceilings
from cacovid.benchmark.run import Row
from cacovid.errors import InvalidInputError
from cacovid.files import written_whole

#: Columns of the CSV file, before those of the environment.
COLUMNS = (
    "op", "provider", "role", "tokens", "hidden", "note", "dtype", "clock", "median_us", "p20_us",
    "p80_us", "samples", "times_ours", "floor_us", "gb_per_s", "copy_share", "peak_mb", "calls",
    "waits",
)  # fmt: skip
_TEXTS = frozenset({"op", "provider", "role", "note", "dtype", "clock"})
_INTEGERS = frozenset({"tokens", "hidden", "samples", "calls", "waits"})


@dataclass(frozen=True)
class Environment:
    """Where the figures come from; every line of the CSV file says it."""

    device: str
    driver: str
    cuda: str
    torch: str
    triton: str
    cacovid: str
    commit: str
    threads: int


def environment(device: torch.device, commit: str = "") -> Environment:
    """Asks the machine.

    Args:
        device: Where was measured.
        commit: Of the sources; asked of git where it is empty.
    """
    cuda = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if cuda else _processor(),
        driver=_said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        if cuda
        else "",
        cuda=str(torch.version.cuda or ""),
        torch=torch.__version__,
        triton=_version("triton"),
        cacovid=__version__,
        commit=commit or _commit(),
        threads=torch.get_num_threads(),
    )


def records(rows: Sequence[Row], dtype: torch.dtype) -> list[dict[str, Any]]:
    """The figures by column."""
    return [
        dict(
            zip(
                COLUMNS,
                (
                    row.case.op,
                    row.provider.name,
                    row.provider.role,
                    row.case.tokens,
                    row.case.hidden,
                    row.case.note,
                    str(dtype).removeprefix("torch."),
                    row.times.clock,
                    _micro(row.times.median),
                    _micro(row.times.p20),
                    _micro(row.times.p80),
                    row.times.samples,
                    round(row.ratio, 3),
                    _micro(row.floor),
                    round(row.case.least_bytes / row.times.median / 1e9, 3),
                    round(row.copy_share, 4),
                    round(row.peak / 2**20, 1),
                    row.calls,
                    row.waits,
                ),
                strict=True,
            )
        )
        for row in rows
    ]


def training_record(training: dict[str, Any]) -> dict[str, Any]:
    """The figures of a training step by column.

    Args:
        training: As `training.TrainingSpeed.to_dict` gives them.
    """
    median = training["seconds_per_step"]
    note = (
        f"{training['model']}, G = {training['rollouts']}, {training['updates_per_step']} updates, "
        f"{training['steps_per_second']:.3g} steps/s, {training['reward_share']:.0%} rewards"
        f"{'' if training['h264'] else ', without H.264'}"
    )
    values = {
        "op": "train",
        "provider": "cacovid",
        "role": "ours",
        "tokens": training["tokens"],
        "hidden": training["hidden"],
        "note": note,
        "clock": training["clock"],
        "median_us": _micro(median),
        "p20_us": _micro(training["p20_seconds"]),
        "p80_us": _micro(training["p80_seconds"]),
        "samples": training["steps"],
        "times_ours": 1.0,
    }
    return {column: values.get(column, "") for column in COLUMNS}


def ceiling_record(ceilings: Ceilings) -> dict[str, float]:
    """The device's limits, rounded for people."""
    return {
        "copy_gb_per_s": round(ceilings.copy / 1e9, 1),
        "read_gb_per_s": round(ceilings.read / 1e9, 1),
        "matmul_tflop_per_s": round(ceilings.matmul / 1e12, 3),
        "empty_node_us": _micro(ceilings.empty),
    }


def write_csv(
    path: Path, rows: Sequence[dict[str, Any]], ceilings: dict[str, float], where: Environment
) -> None:
    """Writes one line for each figure; the ceilings and the environment stand on every line.

    Rows that `read_csv` gave keep their own. A run that is stopped meanwhile leaves the file as it
    was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *ceilings, *vars(where)])
        writer.writeheader()
        for row in rows:
            writer.writerow({**ceilings, **vars(where), **row})


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The figures that `write_csv` wrote, with their ceilings and environment as text.

    Raises:
        InvalidInputError: if the file's columns are others.
    """
    with open(path, newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        if not row.keys() >= set(COLUMNS):
            missing = ", ".join(sorted(set(COLUMNS) - row.keys()))
            raise InvalidInputError(
                f"{path} lacks the columns {missing}; expected a file of this version's bench: "
                f"move it away, or leave --append out"
            )
        for column in COLUMNS:
            if column not in _TEXTS and row[column] != "":
                row[column] = (int if column in _INTEGERS else float)(row[column])
    return rows


def known(path: Path, dtype: torch.dtype) -> frozenset[tuple[str, int, int]]:
    """Op, tokens and hidden size of the cases that a file has for a dtype; none without the file.

    Raises:
        InvalidInputError: if the file's columns are others.
    """
    name = str(dtype).removeprefix("torch.")
    rows = read_csv(path) if path.is_file() else []
    return frozenset(_case(r) for r in rows if r["dtype"] == name)


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`new`, and what `old` has of other ops, sizes and dtypes, in the order of ops and sizes."""

    def case(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["op"], row["dtype"], row["hidden"], row["tokens"]

    replaced = {case(row) for row in new}
    rows = [*(row for row in old if case(row) not in replaced), *new]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    return sorted(rows, key=lambda row: (ops.index(row["op"]), *case(row)[1:]))


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["op"], row["tokens"], row["hidden"]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people, at most 80 columns wide.

    A line names the op and its size; below it stand the ways. A way's ratio is its time over ours,
    `copy` its least traffic as a share of the copy bandwidth, `waits` how often it reads a value
    back to the host. The floor comes from what copies and products took at the start of the run; a
    way that is faster finds its data in a cache, or the machine was busy then, and the line says
    so.
    """
    fastest: dict[tuple[Any, ...], float] = {}
    for row in rows:
        fastest[_case(row)] = min(row["median_us"], fastest.get(_case(row), math.inf))
    layout = "{:<30} {:>9} {:>15} {:>9} {:>5} {:>6}"
    lines = [layout.format("way", "median", "p20 to p80", "x ours", "copy", "waits")]
    before: tuple[Any, ...] = ()
    for row in rows:
        case = _case(row)
        if case != before:
            width = f", D = {row['hidden']:,}" if row["hidden"] else ""
            floor, unit = _scaled(row["floor_us"])
            beaten = " (beaten: cache, or busy)" if fastest[case] < 0.95 * row["floor_us"] else ""
            lines += ["", f"{case[0]}, N = {case[1]:,}{width}, floor {floor} {unit}{beaten}"]
            before = case
        median, unit = _scaled(row["median_us"])
        low, high = (_scaled(row[name], unit)[0] for name in ("p20_us", "p80_us"))
        lines.append(
            layout.format(
                f"  {row['provider']}",
                f"{median} {unit}",
                f"{low} to {high}",
                f"{row['times_ours']:,.4g}",
                f"{row['copy_share']:.0%}",
                f"{row['waits']:,}" if row["waits"] else "",
            ).rstrip()
        )
    return lines


_UNITS = {"s": 1e6, "ms": 1e3, "µs": 1.0}


def _scaled(microseconds: float, unit: str = "") -> tuple[str, str]:
    """The figure in `unit`, or in the largest that makes it at least 1, and the unit."""
    unit = unit or next((u for u, size in _UNITS.items() if microseconds >= size), "µs")
    return f"{microseconds / _UNITS[unit]:.3g}", unit


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    commit = _said(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    changed = _said(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}+changes" if changed else commit


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0]
