"""Compiles the Triton kernels as their launchers launch them, without a GPU.

A launcher is called with tensors on the CPU and with recorders in the place of its kernels, so that
what is compiled is what would be launched. Has to run in a process without Triton's interpreter, in
the repository's root:

    python -m tests.compile.triton_gate list [--architecture 90]
    python -m tests.compile.triton_gate few [--architecture 90]
    python -m tests.compile.triton_gate record [--architecture 90] [--file PATH]

`list` prints a JSON object for each launch that is to compile, and compiles nothing. `few` compiles
those that stand for the rest. `record` brings a file of reports up to date, which is by default
`triton_reports.jsonl` beside this file: it compiles the launches that the file lacks and leaves out
those that are no more. A report has the registers, spilled bytes, shared memory, and which
instructions there are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

ARCHITECTURES = (80, 90, 100)
RECORDS = Path(__file__).with_name("triton_reports.jsonl")
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass
class Launch:
    """One launch of a kernel: its arguments by name."""

    kernel: Any
    arguments: dict[str, Any]


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid), grid
        return self.launch

    def launch(self, *positional: Any, **named: Any) -> None:
        # A keyword that the kernel does not have would be an error of the real launch too.
        names = self.kernel.arg_names
        assert set(named) <= {*names, *_OPTIONS}, set(named) - set(names)
        arguments = {**dict(zip(names, positional, strict=False)), **named}
        assert set(names) <= set(arguments), set(names) - set(arguments)
        self.launches.append(Launch(self.kernel, arguments))


@contextlib.contextmanager
def recorded(module: Any) -> Iterator[list[Launch]]:
    """The launches of a module's kernels, which are not run."""
    launches: list[Launch] = []
    kernels = {n: k for n, k in vars(module).items() if isinstance(k, triton.runtime.JITFunction)}
    try:
        for name, kernel in kernels.items():
            setattr(module, name, _Recorder(kernel, launches))
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def _source(launch: Launch) -> ASTSource:
    """The source that the just-in-time compiler would make of the arguments."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        special = not parameter.do_not_specialize
        aligned = False
        if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            block = ", ".join(map(str, value.block_shape))
            signature[parameter.name] = f"tensordesc<{_TYPES[value.base.dtype]}[{block}]>"
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            aligned = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = special and value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _text(kernel: Any) -> list[tuple[str, str]]:
    """The source of a kernel and of all functions that it calls, by name."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop().fn
        if function.__name__ not in found:
            found[function.__name__] = inspect.getsource(function)
            called = (function.__globals__.get(name) for name in function.__code__.co_names)
            waiting += [f for f in called if isinstance(f, triton.runtime.JITFunction)]
    return sorted(found.items())


def key(launch: Launch, architecture: int) -> str:
    """A hash of what is compiled: the kernel's source, the kinds of its arguments, the options.

    Triton's version is not in it and stands beside it in a report.
    """
    source = _source(launch)
    options = [launch.arguments[name] for name in _OPTIONS]
    arguments = (source.signature, source.constants, source.attrs, options)
    parts = (_text(launch.kernel), architecture, arguments)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def compiled(launch: Launch, architecture: int) -> dict[str, Any]:
    """What ptxas and the code say of a launch.

    Args:
        launch: A kernel with its arguments.
        architecture: Such as 90.
    """
    options = {name: launch.arguments[name] for name in _OPTIONS}
    # Only a compilation that is not taken from the cache has ptxas's report.
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        kernel = triton.compile(
            _source(launch), target=GPUTarget("cuda", architecture, 32), options=options
        )
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    assert spills and registers, log.getvalue()
    ptx = kernel.asm["ptx"]
    return {
        "spilled": int(spills[1]) + int(spills[2]),
        "registers": int(registers[1]),
        "shared": kernel.metadata.shared,
        "wgmma": "wgmma.mma_async" in ptx,
        "tcgen05": "tcgen05.mma" in ptx,
        "mma": "mma.sync" in ptx,
        "descriptors": "cp.async.bulk.tensor" in ptx,
    }


@dataclass(frozen=True)
class Job:
    """One call of a launcher.

    Args:
        op: The key of its configurations.
        label: Which configuration and which shape, for messages.
        dtype: Of the video.
        call: Calls the launcher; under `recorded`.
    """

    op: str
    label: str
    dtype: torch.dtype
    call: Callable[[], Any]


def score_jobs(architecture: int) -> Iterator[Job]:
    """`score` for every entry of the configurations, in its dtypes, at its widest."""
    from cacovid.kernels import configurations

    entries = configurations.read("default.json")[f"sm_{architecture}"]
    for op in ("score_fwd", "score_project", "score_dw"):
        for number, entry in enumerate(entries[op]):
            for name in entry["dtypes"]:
                config = {
                    k: v for k, v in entry.items() if k not in ("dtypes", "columns", "tokens")
                }
                if op == "score_fwd" and not config["FUSED"]:
                    continue
                yield from _score_jobs(op, number, getattr(torch, name), entry["columns"], config)


def _score_jobs(
    op: str, number: int, dtype: torch.dtype, columns: int | None, config: dict[str, int]
) -> Iterator[Job]:
    # Slots, features and inter-frame columns of the design point and of the widest that the entry
    # serves; hidden sizes that divide evenly and one that does not; every form of loading.
    widest = columns or 384
    most = 1 << ((widest - 64).bit_length() - 1)
    shapes = {(64, 64, False), (most, 64, False)}
    if op == "score_project":
        shapes = {(64, 64, False), (64, 64, True)}
        shapes.add((1 << ((widest - 128).bit_length() - 1), 64, True))
        if columns is None:  # keys that are not folded: queries of two heads of 64 are read
            label = f"{op}[{number}] {dtype} {most}+64+keys D=3584"
            keys = _score_call(op, dtype, most, 64, False, 3584, False, config, key_width=64)
            yield Job(op, label, dtype, keys)
    for slots, features, inter_frame in sorted(shapes):
        if slots + features * (2 if inter_frame else 1) > widest:
            continue
        for size, keep in ((3584, False), (3584, True), (904, False)):
            if (op == "score_project" and keep) or (op == "score_dw" and (keep or inter_frame)):
                continue
            label = f"{op}[{number}] {dtype} {slots}+{features}{'+diff' * inter_frame} D={size}"
            yield Job(
                op,
                label + " keep" * keep,
                dtype,
                _score_call(op, dtype, slots, features, inter_frame, size, keep, config),
            )


def _score_call(
    op: str, dtype: torch.dtype, slots: int, features: int, inter_frame: bool, size: int,
    keep: bool, config: dict[str, int], key_width: int = 0,
) -> Callable[[], Any]:  # fmt: skip
    def call() -> Any:
        from cacovid.kernels import score

        video = torch.zeros(100, size, dtype=dtype)
        half = features // 2
        columns = (2 * key_width or slots) + features * (2 if inter_frame else 1)
        keys = torch.zeros(slots, key_width) if key_width else None
        sizes = [4, 25, 0]
        if op == "score_dw":
            return score.score_dw_triton(video, torch.zeros(100, columns), sizes, 1, config=config)
        head = torch.zeros(1, half * half + 3 * half + 1)
        return score.score_fwd_triton(
            video, torch.zeros(columns, size, dtype=dtype), torch.zeros(slots, features), head,
            head, sizes, [slots], half, 2, inter_frame, 1e-6, 3.0, keys, keep=keep, config=config,
        )  # fmt: skip

    return call


def test_jobs() -> Iterator[Job]:
    """The launches of the tests of `score`, of those that hold the most columns."""
    from tests.kernels import test_score_triton as tests

    for shape in tests.SHAPES:
        for dtype in tests.DTYPES:
            video = tests.draw_video(tests.GRID.num_tokens, shape[0], dtype)
            given = (video, tests.questions(shape), tests.GRID, shape[-1])
            if shape[-1] is not None:
                label = f"tests {dtype} {shape}"
                yield Job("tests", label, dtype, lambda given=given: tests.scores(*given))


def launches(architecture: int) -> Iterator[tuple[dict[str, Any], Launch]]:
    """What is to compile, each distinct launch once: how a report of it begins, and the launch."""
    from cacovid.kernels import score

    seen: set[str] = set()
    # Where the tests run; on other devices they may have to be smaller.
    more = test_jobs() if architecture == 90 else iter(())
    for job in itertools.chain(score_jobs(architecture), more):
        with recorded(score) as found:
            job.call()
        for launch in found:
            name = key(launch, architecture)
            if name not in seen:
                seen.add(name)
                yield {
                    "key": name, "triton": triton.__version__, "architecture": architecture,
                    "op": job.op, "dtype": str(job.dtype).removeprefix("torch."),
                    "label": job.label, "kernel": launch.kernel.__name__,
                }, launch  # fmt: skip


def few(architecture: int) -> Iterator[dict[str, Any]]:
    """Reports of the first launch of each kernel: for sm_90 in each dtype, else in bfloat16."""
    done = set()
    for head, launch in launches(architecture):
        kind = (head["kernel"], head["dtype"])
        if head["op"] == "tests" or kind in done:
            continue
        if architecture == 90 or head["dtype"] == "bfloat16":
            done.add(kind)
            yield {**head, **compiled(launch, architecture)}


def read(path: Path) -> list[dict[str, Any]]:
    """The reports of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(architecture: int, path: Path) -> None:
    """Brings a file's reports for an architecture up to date.

    Each report is written as it comes, so that work is not lost when it is broken off.
    """
    old = {(report["key"], report["triton"]): report for report in read(path)}
    others = [report for report in old.values() if report["architecture"] != architecture]
    reports = []
    for head, launch in launches(architecture):
        report = old.get((head["key"], head["triton"]))
        if report is None:
            report = {**head, **compiled(launch, architecture)}
            print(json.dumps(report), file=sys.stderr, flush=True)
            with path.open("a") as file:
                file.write(json.dumps(report) + "\n")
        reports.append({**report, **head})
    everything = sorted(others + reports, key=lambda r: (r["architecture"], r["label"], r["key"]))
    path.write_text("".join(json.dumps(report) + "\n" for report in everything))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("list", "few", "record"))
    parser.add_argument("--architecture", type=int, action="append", choices=ARCHITECTURES)
    parser.add_argument("--file", type=Path, default=RECORDS)
    options = parser.parse_args()
    for architecture in options.architecture or ARCHITECTURES:
        if options.what == "record":
            record(architecture, options.file)
            continue
        heads = (head for head, _ in launches(architecture))
        for report in heads if options.what == "list" else few(architecture):
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
