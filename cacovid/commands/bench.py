"""`cacovid bench`: every op beside what it replaces, and a training step."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import (
    Command,
    UsageError,
    check_at_least,
    write_json,
    write_line,
)
from cacovid.commands.progress import steps_bar

if TYPE_CHECKING:
    from cacovid.benchmark.cases import Setting
    from cacovid.benchmark.ceilings import Ceilings
    from cacovid.benchmark.run import Row

#: Names of `cacovid.benchmark.ops.MAKERS` and the training step, written out for a quick --help.
OPS = (
    "score", "select_tokens", "gather", "prune", "ocss_sample", "pack_rollouts", "cpo_loss",
    "farthest_point", "density_peaks", "train",
)  # fmt: skip
TOKENS = {"cuda": (6272, 12544, 50176, 200704), "cpu": (6272, 12544, 50176)}
HIDDEN = {"cuda": (896, 2048, 3584), "cpu": (896, 3584)}
QUICK_TOKENS, QUICK_HIDDEN = (6272,), (896,)


@dataclass
class Bench(Command):
    """Measure the ops beside what they replace, in turns, in one run.

    Times are medians; "x ours" is a way's time over that of cacovid. On CUDA the device's own clock
    is read where a CUDA graph can hold the work, else the host's.

    Example: cacovid bench --device cpu --quick
    """

    device: Annotated[str | None, arg(metavar="cpu|cuda", help_behavior_hint="")] = None
    """Where. Default: a GPU if there is one."""
    ops: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()
    """Of score, select_tokens, gather, prune (score and selection), ocss_sample, pack_rollouts,
    cpo_loss, farthest_point, density_peaks, train (a step, on --model). Default: all."""
    tokens: Annotated[tuple[int, ...], arg(metavar="N [N ...]", help_behavior_hint="")] = ()
    """Video tokens, multiples of 196. Default: 6,272 to 200,704; on the CPU to 50,176."""
    hidden: Annotated[tuple[int, ...], arg(metavar="D [D ...]", help_behavior_hint="")] = ()
    """Hidden sizes. Default: 896, 2,048 and 3,584; on the CPU 896 and 3,584."""
    dtype: Annotated[str, arg(metavar="bfloat16|float16|float32")] = "bfloat16"
    """Of the embeddings."""
    model: Annotated[str, arg(metavar="tiny|DIR|ID")] = "tiny"
    """The frozen model of the training step."""
    quick: bool = False
    """One size (6,272 tokens of 896), less time for each, no torch.compile."""
    without_compile: bool = False
    """Leave torch.compile out: it takes up to a minute for each size."""
    seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Time for each op and size. Default: 2, with --quick 0.5."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads. Default: as torch has them."""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the figures, one line each, with the machine and the versions."""
    plots: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Draw time against tokens for every op, and the speed-ups."""
    commit: Annotated[str, arg(metavar="ID", help_behavior_hint="")] = ""
    """Commit to write down. Default: asked of git."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> None:
        """Measures, and prints the table."""
        self._check()
        import torch

        from cacovid.benchmark import ceilings, report
        from cacovid.benchmark.cases import Setting

        device = self._device()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        setting = Setting(
            device, getattr(torch, self.dtype), not (self.quick or self.without_compile)
        )
        where = report.environment(device, self.commit)
        limits = ceilings.measure(device, setting.dtype)
        rows, skipped = self._rows(setting, limits)
        records = report.records(rows, setting.dtype)
        training = self._training(device) if "train" in self._names() else None
        limit_record = report.ceiling_record(limits)
        if self.csv is not None:
            report.write_csv(self.csv, records, limit_record, where)
        if self.plots is not None and records:
            from cacovid.benchmark import plots

            plots.draw(records, f"{where.device}, {self.dtype}", self.plots)
        if self.json:
            write_json(
                {
                    "results": records,
                    "ceilings": limit_record,
                    "environment": vars(where),
                    "training": training,
                    "skipped": skipped,
                }
            )
            return
        self._show(records, limit_record, where, training)

    def _check(self) -> None:
        for name in self.ops:
            if name not in OPS:
                raise UsageError(f"--ops: {name!r} is not known; expected some of {', '.join(OPS)}")
        for count in self.tokens:
            if count < 196 or count % 196:
                raise UsageError(f"--tokens is {count}; expected frames of 196, such as 6272")
        for width in self.hidden:
            check_at_least(width, 16, "--hidden")
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise UsageError(f"--dtype is {self.dtype!r}; expected bfloat16, float16 or float32")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"--seconds is {self.seconds:g}; expected more than 0")
        if self.threads is not None:
            check_at_least(self.threads, 1, "--threads")

    def _device(self) -> Any:
        import torch

        wanted = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if wanted not in ("cpu", "cuda"):
            raise UsageError(f"--device is {wanted!r}; expected cpu or cuda")
        if wanted == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "--device is cuda, but torch sees no CUDA device; `cacovid doctor` says why"
            )
        return torch.device(wanted)

    def _names(self) -> tuple[str, ...]:
        return self.ops or OPS

    def _rows(self, setting: Setting, limits: Ceilings) -> tuple[list[Row], list[str]]:
        from cacovid.benchmark.ops import MAKERS, cases
        from cacovid.benchmark.run import Skipped, run_case

        kind = setting.device.type
        tokens = self.tokens or (QUICK_TOKENS if self.quick else TOKENS[kind])
        hidden = self.hidden or (QUICK_HIDDEN if self.quick else HIDDEN[kind])
        seconds = self.seconds or (0.5 if self.quick else 2.0)
        names = tuple(name for name in self._names() if name in MAKERS)
        makers = list(cases(names, tokens, hidden, setting))
        rows: list[Row] = []
        skipped: list[str] = []
        with steps_bar("Measuring", len(makers)) as bar:
            for done, make in enumerate(makers, start=1):
                case = make()
                try:
                    rows += run_case(case, setting, limits, seconds)
                except Skipped as reason:
                    skipped.append(f"{case.op}, N = {case.tokens}, D = {case.hidden}: {reason}")
                    bar.note(f"left out {skipped[-1]}")
                bar.step(done, None)
        return rows, skipped

    def _training(self, device: Any) -> dict[str, Any] | None:
        from cacovid.benchmark import training

        try:
            return training.measure(self.model, device, 1 if self.quick else 5).to_dict()
        except ImportError as error:  # the rest of the figures do not hang on it
            if self.ops:
                raise
            sys.stderr.write(f"left out the training step: {error}\n")
            return None

    def _show(
        self, records: list[dict[str, Any]], limits: dict[str, float], where: Any, training: Any
    ) -> None:
        from cacovid.benchmark import report

        versions = f"torch {where.torch}, {where.threads} threads"
        if where.cuda:
            versions += f", CUDA {where.cuda}, driver {where.driver}, triton {where.triton}"
        write_line(f"{where.device}; {versions}; commit {where.commit or 'not known'}")
        write_line(
            f"ceilings: copy {limits['copy_gb_per_s']:,} GB/s, read {limits['read_gb_per_s']:,} "
            f"GB/s, {self.dtype} product {limits['matmul_tflop_per_s']:,} TFLOP/s"
        )
        if records:
            for line in report.table(records):
                write_line(line)
        if training is not None:
            write_line()
            write_line(
                f"training ({training['model']}, {training['tokens']} tokens, "
                f"{training['rollouts']} rollouts, {training['updates_per_step']} updates): "
                f"{training['seconds_per_step']:.3g} s a step, {training['steps_per_second']:.3g} "
                f"steps/s; {training['reward_share']:.0%} of it rewards"
            )
