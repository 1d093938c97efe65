"""The CUDA ops as ops of the CPU, by a device that is emulated (see `emulator/cuda_runtime.h`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).resolve().parent / "emulator"
NAMESPACE = "cacovid_emulated"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
_LAUNCH = re.compile(r"(?P<kernel>[A-Za-z_]\w*(?:<[^<>;]*>)?)\s*<<<")


def translate(source: str) -> str:
    """A CUDA source for the host's compiler: launches become calls, the ops those of the CPU."""
    source = source.replace("STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA,",
                            f"STABLE_TORCH_LIBRARY_IMPL({NAMESPACE}, CPU,")  # fmt: skip
    source = source.replace("is_cuda()", "is_cpu()")
    source = re.sub(
        r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = emulated::dynamic_shared();", source
    )
    while found := _LAUNCH.search(source):
        close = source.index(">>>", found.end())
        grid, threads, size, _stream = _split(source[found.end() : close])
        end = _closing(source, close + len(">>>"))
        arguments = source[close + len(">>>") : end]
        kernel = f"[&] {{ {found['kernel']}{arguments}; }}"
        call = f"emulated::launch({grid}, {threads}, {size}, {kernel})"
        source = source[: found.start()] + call + source[end:]
    return source


def _split(text: str) -> list[str]:
    """The arguments of a call."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _closing(text: str, begin: int) -> int:
    """The place behind the parenthesis that closes the one at `begin`."""
    depth = 0
    for at in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at + 1
    raise ValueError(f"no closing parenthesis behind {text[begin : begin + 40]!r}")


def build(folder: Path) -> Path:
    """Translates csrc and compiles the CUDA ops for the host; the library to load."""
    assert COMPILER is not None
    tree = folder / "csrc"
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        if path.suffix not in {".cu", ".cuh", ".h"}:
            continue
        to = (tree / path.relative_to(ROOT / "csrc")).with_suffix(
            ".cpp" if path.suffix == ".cu" else path.suffix
        )
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(translate(path.read_text()))
    torch_folder = Path(torch.__file__).parent
    flags = ["-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-fPIC", "-DUSE_CUDA"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{EMULATOR}", f"-I{tree / 'include'}"]
    flags += ["-isystem", str(torch_folder / "include"), "-Wno-attributes"]
    objects = []
    for source in [*sorted((tree / "cuda").glob("*.cpp")), EMULATOR / "device.cpp"]:
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run(
            [COMPILER, *flags, "-c", str(source), "-o", objects[-1]], check=True, timeout=300
        )
    library = folder / "emulated.so"
    link = [COMPILER, "-shared", "-Wl,-Bsymbolic", *objects, "-o", str(library)]
    subprocess.run(
        [*link, f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"], check=True, timeout=300
    )
    return library
