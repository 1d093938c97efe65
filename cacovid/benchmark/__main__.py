"""`python -m cacovid.benchmark`: `cacovid bench` for machines without the command line's packages.

The same run; `bench/device.sh` calls it, as a GPU machine may have torch and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and returns 1 if a case failed."""
    parser = argparse.ArgumentParser(
        prog="python -m cacovid.benchmark", description="Measure the ops (see cacovid bench)."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--ops", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--tokens", nargs="+", type=int, default=[], metavar="N")
    parser.add_argument("--hidden", nargs="+", type=int, default=[], metavar="D")
    parser.add_argument("--model", default="tiny", help="of the training step")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--most-seconds", type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--without-compile", action="store_true")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--missing", action="store_true", help="only what --csv lacks")
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args(arguments)

    import torch

    from cacovid.benchmark import report
    from cacovid.benchmark.measure import NAMES, Wish, measure

    unknown = sorted(set(own.ops) - set(NAMES))
    if unknown:
        parser.error(f"--ops: {', '.join(unknown)} not known; expected some of {', '.join(NAMES)}")
    if own.csv is None and (own.append or own.missing):
        parser.error("--append and --missing read a file of figures; name it by --csv")
    if own.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no CUDA device")
    append = own.append or own.missing
    wish = Wish(
        device=torch.device(own.device),
        names=tuple(own.ops),
        tokens=tuple(own.tokens),
        hidden=tuple(own.hidden),
        model=own.model,
        quick=own.quick,
        compiled=not own.without_compile,
        seconds=own.seconds,
        most_seconds=own.most_seconds,
        commit=own.commit,
        known=report.known(own.csv, Wish.dtype) if own.missing else frozenset(),
    )
    measured = measure(
        wish, on_note=_note, on_result=lambda some: some.write(own.csv, None, append)
    )
    measured.write(own.csv, None, append)
    lines = (
        [json.dumps(measured.to_dict(), ensure_ascii=False)]
        if own.json
        else measured.lines(wish.dtype)
    )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    if own.plots is not None:  # last: matplotlib may be missing
        measured.write(own.csv, own.plots, append)
    return 1 if measured.failed else 0


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
