"""`cacovid bench`: every op beside what it replaces, and a training step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from cacovid.commands.common import (
    Command,
    UsageError,
    check_at_least,
    check_output,
    check_output_folder,
    write_json,
    write_line,
)
from cacovid.commands.progress import steps_bar
from cacovid.errors import CacovidError

#: `cacovid.benchmark.measure.NAMES`, written out for a quick --help.
OPS = (
    "score", "self_attention", "select_tokens", "gather", "prune", "ocss_sample", "frame_sample",
    "pack_rollouts", "cpo_loss", "farthest_point", "density_peaks", "train",
)  # fmt: skip


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
    """Of score, self_attention (the paper's policy), select_tokens, gather, prune (score and
    selection), ocss_sample, frame_sample, pack_rollouts, cpo_loss, farthest_point, density_peaks,
    train (a step, on --model). Default: all."""
    tokens: Annotated[tuple[int, ...], arg(metavar="N [N ...]", help_behavior_hint="")] = ()
    """Video tokens, multiples of 196. Default: 6272, 12544, 50176 and 200704; sizes that take too
    long or too much memory, on the CPU or in the ways that are replaced, are left out."""
    hidden: Annotated[tuple[int, ...], arg(metavar="D [D ...]", help_behavior_hint="")] = ()
    """Hidden sizes. Default: 896, 2048 and 3584."""
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
    most_seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="")] = None
    """Begin no further case after this time. Default: no limit."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads. Default: as torch has them. With 1 on the CPU, times are the processor's own, so
    that other work on the machine counts little."""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the figures, one line each, with the machine and the versions; after every case, so
    that a run that is stopped leaves what it has."""
    append: bool = False
    """Keep what --csv has of other ops and sizes."""
    missing: bool = False
    """Measure only the ops and sizes that --csv lacks, and keep the others."""
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

        from cacovid.benchmark import report
        from cacovid.benchmark.measure import Wish, measure

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        append, dtype = self.append or self.missing, getattr(torch, self.dtype)
        known = frozenset[tuple[str, int, int]]()
        if self.missing and self.csv is not None:
            known = report.known(self.csv, dtype)
        wish = Wish(
            device=self._device(),
            names=self.ops,
            tokens=self.tokens,
            hidden=self.hidden,
            dtype=dtype,
            model=self.model,
            quick=self.quick,
            compiled=not self.without_compile,
            seconds=self.seconds,
            most_seconds=self.most_seconds,
            commit=self.commit,
            known=known,
        )

        def keep(measured: Any) -> None:
            measured.write(self.csv, None, append)

        with steps_bar("Measuring", 1) as bar:
            measured = measure(
                wish, lambda done, total: bar.step(done, None, total), bar.note, keep
            )
        measured.write(self.csv, self.plots, append)
        if self.json:
            write_json(measured.to_dict())
        else:
            for line in measured.lines(wish.dtype):
                write_line(line)
        if measured.failed:
            raise CacovidError(f"{len(measured.failed)} failed: {'; '.join(measured.failed)}")

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
        if (self.append or self.missing) and self.csv is None:
            raise UsageError("--append and --missing read a file of figures; name it by --csv")
        if self.csv is not None:
            check_output(self.csv, "--csv")
        if self.plots is not None:
            check_output_folder(self.plots, "--plots")

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
