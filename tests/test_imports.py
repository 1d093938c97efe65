"""Imports go one way, are fast, and have no effects."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cacovid

PACKAGE = Path(cacovid.__file__).parent

# What each part of the package may import. Whoever needs more argues for it here.
LEAVES = {"errors", "types", "devices", "files"}
SIDE = {"video", "synthetic", "viz"}
OPS = {"ops", "reference", "kernels", "backends", "_extension", "settings"} | LEAVES
POLICIES = {"policies"} | OPS
METHODS = {"methods"} | POLICIES
MODELS = {"models"} | METHODS | SIDE
TOP = MODELS | {"doctor", "session", "_version"}
MAY_IMPORT = {
    "errors": set(),
    "_version": set(),
    "types": {"errors"},
    "devices": {"errors"},
    "files": set(),
    "settings": {"errors"},
    "_extension": {"errors", "settings"},
    "backends": {"errors", "settings", "_extension"},
    "reference": LEAVES,
    "ops": OPS - {"ops"},
    "policies": OPS,
    "methods": POLICIES,
    "session": POLICIES,
    "models": METHODS | {"video", "viz"},
    "video": {"errors", "files"},
    "viz": LEAVES | {"video"},
    "synthetic": MODELS - {"synthetic"},  # the embedded model is trained and evaluated there
    "testing": OPS,
    "doctor": {"errors", "settings", "backends", "_extension", "_version"},
    "train": TOP,
    "evaluation": TOP | {"train"},
    "benchmark": TOP | {"train"},
    "engines": TOP,
    "cli": TOP | {"train", "evaluation", "benchmark", "engines", "commands"},
    "commands": TOP | {"train", "evaluation", "benchmark", "engines"},
    "__main__": {"cli"},
}

# What may be imported at the top of a file; everything else is an extra, imported when used. The
# inner files of these parts are themselves imported when used.
WITH_EXTRAS = {"commands", "viz"}
#: Likewise: sub-classes of an engine's own classes, which only that engine imports.
OF_AN_ENGINE = PACKAGE / "engines" / "vllm" / "models"
CORE = {"torch", "numpy", "safetensors", "huggingface_hub", "cacovid"}


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction; write them out"
            if node.module == "cacovid":
                yield from (f"cacovid.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "assets" not in path.parts]


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = _part(path)
    if part == "__init__":
        return  # names everything, imports it lazily: see the test below
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT what it may import"
    imports = [name.split(".") for name in _imports(ast.parse(path.read_text()))]
    ours = {name[1] for name in imports if name[0] == "cacovid" and len(name) > 1}
    assert ours - MAY_IMPORT[part] - {part} == set()


def test_the_rules_have_no_cycle() -> None:
    order: list[str] = []

    def visit(part: str, path: tuple[str, ...]) -> None:
        assert part not in path, f"cycle: {' -> '.join((*path, part))}"
        if part not in order:
            for below in sorted(MAY_IMPORT.get(part, set()) - {part}):
                visit(below, (*path, part))
            order.append(part)

    for part in MAY_IMPORT:
        visit(part, ())


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in _files()
        if _part(path) not in WITH_EXTRAS and OF_AN_ENGINE not in path.parents
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_extras_are_imported_when_they_are_used(path: Path) -> None:
    statements = [node for node in ast.parse(path.read_text()).body if not _is_type_checking(node)]
    top = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in top for name in _imports(node)}
    assert names - CORE - sys.stdlib_module_names == set()


def test_the_reference_needs_torch_alone() -> None:
    names = {
        name.split(".")[0]
        for path in (PACKAGE / "reference").rglob("*.py")
        for name in _imports(ast.parse(path.read_text()))
    }
    assert names - {"torch", "cacovid"} - sys.stdlib_module_names == set()


def test_only_one_file_reads_the_environment_for_our_names() -> None:
    for path in _files():
        source = path.read_text()
        if path.name != "settings.py" and "CACOVID_" in source:
            for node in ast.walk(ast.parse(source)):
                read = isinstance(node, ast.Call | ast.Subscript) and ast.unparse(node)
                assert not (read and "environ" in read and "CACOVID_" in read), path


def _fresh(code: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


# Names that are missing are the matter of the test of the public interface.
_IMPORT_ALL = """
import contextlib, cacovid
for name in cacovid.__all__:
    with contextlib.suppress(AttributeError, ImportError):
        getattr(cacovid, name)
"""


def test_import_is_fast() -> None:
    # Processor time, not wall time: other work on the machine must not fail the test.
    before = """
import json, sys, time
start = time.process_time()
import cacovid
alone, heavy = time.process_time() - start, sorted({"torch", "numpy"} & set(sys.modules))
import torch
start = time.process_time()
"""
    after = """
everything = time.process_time() - start
extras = ("transformers", "accelerate", "av", "decord", "torchcodec", "triton", "matplotlib",
          "PIL", "tyro", "rich")
print(json.dumps({"alone": alone, "heavy": heavy, "all": everything,
                  "extras": [name for name in extras if name in sys.modules]}))
"""
    found = _fresh(before + _IMPORT_ALL + after)
    assert found["heavy"] == [] and float(str(found["alone"])) < 0.2
    assert float(str(found["all"])) < 1.0
    assert found["extras"] == []


def test_import_has_no_effects() -> None:
    before = """
import json, os, sys, warnings
import torch, torch._library, huggingface_hub
import transformers
from transformers.models.llava_onevision import modeling_llava_onevision as modeling

watched = [torch, torch.Tensor, torch.nn.Module, torch.nn.functional, torch.autograd.Function,
           transformers.PreTrainedModel, transformers.GenerationMixin, modeling,
           *(c for c in vars(modeling).values() if isinstance(c, type))]
def state():
    return ([dict(vars(thing)) for thing in watched], list(sys.meta_path), list(sys.path_hooks),
            list(warnings.filters), dict(os.environ), torch.get_default_dtype(),
            torch.get_num_threads(), torch.random.initial_seed())
before, events = state(), []
def hook(event, arguments):
    written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if written and not str(arguments[0]).rpartition(".pyc")[1]:
        events.append(f"{event} {arguments[0]}")
    elif event.startswith(("subprocess.", "os.system", "os.exec", "os.spawn", "socket.connect")):
        events.append(event)
sys.addaudithook(hook)
"""
    after = """
after = state()
changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
print(json.dumps({"changed": changed, "events": events, "cuda": torch.cuda.is_initialized()}))
"""
    assert _fresh(before + _IMPORT_ALL + after) == {"changed": [], "events": [], "cuda": False}


def test_public_names_are_lazy_and_complete() -> None:
    assert sorted(set(cacovid.__all__)) == dir(cacovid)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = cacovid.no_such_name
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if _is_type_checking(node))
    # What type checkers see is what is there at run time.
    seen = {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom)
            for alias in node.names}  # fmt: skip
    assert seen == set(cacovid.__all__) - {"__version__"}
