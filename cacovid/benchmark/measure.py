"""A whole run: the device's ceilings, all cases, the training step; what fails is told last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cacovid.benchmark import ceilings, report
from cacovid.benchmark.cases import Setting
from cacovid.benchmark.ops import MAKERS, cases
from cacovid.benchmark.run import run_case
from cacovid.errors import CacovidError

#: What can be measured: the ops, and a training step.
NAMES = (*MAKERS, "train")
TOKENS = (6272, 12544, 50176, 200704)
HIDDEN = (896, 2048, 3584)
QUICK_TOKENS, QUICK_HIDDEN = (6272,), (896,)


@dataclass(frozen=True)
class Wish:
    """What is to be measured.

    Args:
        device: Where.
        names: Of `NAMES`; empty: all.
        tokens: Numbers of tokens; empty: `TOKENS`.
        hidden: Hidden sizes; empty: `HIDDEN`.
        dtype: Of the embeddings.
        model: The frozen model of the training step.
        quick: One size, less time for each, no torch.compile.
        compiled: Whether torch.compile is among the ways.
        seconds: Time for each op and size; None: 2, or 0.5.
        most_seconds: No case is begun after this time; None: no limit.
        commit: To write down; asked of git where it is empty.
        known: Cases that are left out, see `report.known`.
    """

    device: torch.device
    names: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    dtype: torch.dtype = torch.bfloat16
    model: str = "tiny"
    quick: bool = False
    compiled: bool = True
    seconds: float | None = None
    most_seconds: float | None = None
    commit: str = ""
    known: frozenset[tuple[str, int, int]] = frozenset()


@dataclass
class Measured:
    """What came of it.

    Args:
        environment: The machine and the versions.
        ceilings: The device's limits.
        results: Records, as `report.records` makes them.
        training: Of the training step; None where it was not measured.
        skipped: Cases that were left out, with the reason.
        failed: Cases that gave a wrong result or an error.
    """

    environment: report.Environment
    ceilings: dict[str, float]
    results: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] | None = None
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "environment": vars(self.environment)}

    def lines(self, dtype: torch.dtype) -> list[str]:
        """For people."""
        where, limits = self.environment, self.ceilings
        versions = f"torch {where.torch}, {where.threads} threads"
        if where.cuda:
            versions += f", CUDA {where.cuda}, driver {where.driver}, triton {where.triton}"
        name = str(dtype).removeprefix("torch.")
        lines = [
            f"{where.device}; {versions}; commit {where.commit or 'not known'}",
            f"ceilings: copy {limits['copy_gb_per_s']:,} GB/s, read {limits['read_gb_per_s']:,} "
            f"GB/s, {name} product {limits['matmul_tflop_per_s']:,} TFLOP/s",
        ]
        if self.results:
            lines += report.table(self.results)
        if self.training is not None:
            t = self.training
            lines += [
                "",
                f"training ({t['model']}, {t['tokens']} tokens, {t['rollouts']} rollouts, "
                f"{t['updates_per_step']} updates): {t['seconds_per_step']:.3g} s a step, "
                f"{t['steps_per_second']:.3g} steps/s; {t['reward_share']:.0%} of it rewards"
                f"{'' if t['h264'] else '; clips without H.264, as PyAV is not installed'}",
            ]
        return lines

    def write(self, csv: Path | None, plots: Path | None, append: bool = False) -> None:
        """Writes the CSV file and the pictures that are asked for.

        Args:
            csv: The file.
            plots: Folder of the pictures.
            append: Keep what the file has of other ops and sizes, and draw it too.
        """
        rows = list(self.results)
        if self.training is not None:
            rows.append(report.training_record(self.training))
        if append and csv is not None and csv.is_file():
            rows = report.merged(report.read_csv(csv), rows)
        if csv is not None:
            report.write_csv(csv, rows, self.ceilings, self.environment)
        drawn = [row for row in rows if row["op"] != "train"]
        if plots is not None and drawn:
            from cacovid.benchmark.plots import draw

            draw(drawn, f"{self.environment.device}, {drawn[0]['dtype']}", plots)


def measure(
    wish: Wish,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_result: Callable[[Measured], None] = lambda measured: None,
) -> Measured:
    """Measures everything that is wished for; a case that fails does not stop the others.

    Args:
        wish: What.
        on_step: Called with the cases done and their number.
        on_note: Called with what was left out or failed, when it happens.
        on_result: Called with all figures so far whenever there are new ones, so that a run that is
            stopped leaves what it has.
    """
    begin = time.monotonic()
    tokens = wish.tokens or (QUICK_TOKENS if wish.quick else TOKENS)
    hidden = wish.hidden or (QUICK_HIDDEN if wish.quick else HIDDEN)
    seconds = wish.seconds or (0.5 if wish.quick else 2.0)
    setting = Setting(wish.device, wish.dtype, wish.compiled and not wish.quick)
    limits = ceilings.measure(wish.device, wish.dtype)
    measured = Measured(report.environment(wish.device, wish.commit), report.ceiling_record(limits))
    names = wish.names or NAMES
    if "train" in names:  # first: it is the smallest, and a limit must not leave it out
        measured.training = _training(wish, measured, on_note)
        on_result(measured)
    own = tuple(n for n in names if n in MAKERS)
    makers = list(cases(own, tokens, hidden, setting, wish.known))
    for done, make in enumerate(makers, start=1):
        if wish.most_seconds is not None and time.monotonic() - begin > wish.most_seconds:
            left = len(makers) - done + 1
            measured.skipped.append(f"{left} of {len(makers)} cases: the time was used up")
            on_note(f"left out {measured.skipped[-1]}")
            break
        what = f"case {done}"
        try:
            case = make()
            what = f"{case.op}, N = {case.tokens:,}, D = {case.hidden:,}"
            rows = run_case(case, setting, limits, seconds)
            measured.results += report.records(rows, wish.dtype)
            on_result(measured)
        except torch.OutOfMemoryError:
            measured.skipped.append(f"{what}: not enough memory")
            on_note(f"left out {measured.skipped[-1]}")
        except (AssertionError, RuntimeError, CacovidError) as error:
            measured.failed.append(f"{what}: {type(error).__name__}: {_first_line(error)}")
            on_note(f"FAILED {measured.failed[-1]}")
        on_step(done, len(makers))
    return measured


def _training(
    wish: Wish, measured: Measured, on_note: Callable[[str], None]
) -> dict[str, Any] | None:
    from cacovid.benchmark import training

    try:
        return training.measure(wish.model, wish.device, 1 if wish.quick else 5).to_dict()
    except ImportError as error:  # an extra that is not installed: the ops do not hang on it
        measured.skipped.append(f"training step: {error}")
        on_note(f"left out {measured.skipped[-1]}")
    except (RuntimeError, CacovidError) as error:
        measured.failed.append(f"training step: {type(error).__name__}: {_first_line(error)}")
        on_note(f"FAILED {measured.failed[-1]}")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
