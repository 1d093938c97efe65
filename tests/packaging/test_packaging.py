"""The distributions as users get them: sdist, the wheel built from it, and what is in both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="needs the checkout, not an installed package"
)


def _run(
    command: list[str | Path], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CACOVID_")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done


def _python(code: str, tree: Path, **environment: str) -> str:
    """Runs code against the package unpacked in `tree`, and nothing else of that name."""
    check = f"import cacovid, sys; assert cacovid.__file__.startswith({str(tree)!r})\n"
    command = [sys.executable, "-c", check + code]
    return _run(command, tree.parent, PYTHONPATH=str(tree), **environment).stdout


def _wheel_of(source: Path, destination: Path, **environment: str) -> Path:
    options = ["--no-build-isolation", "--no-deps", "-q", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", destination, source]
    _run(command, source, **environment)
    (wheel,) = destination.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    # An egg-info folder of its own: setuptools would take over the file list of an earlier build.
    _run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", folder, "sdist", "-d", folder],
        ROOT,
        CACOVID_SKIP_NATIVE="1",
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the unpacked source distribution as `pip install` of it would."""
    # nvcc takes a minute; the CUDA library of the checkout is looked at in its own test.
    return _wheel_of(sdist, tmp_path_factory.mktemp("wheel"), CACOVID_CUDA="0")


@pytest.fixture
def unpacked(wheel: Path, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tree)
    return tree


def _files_of(*patterns: str) -> set[str]:
    files = (path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())
    return {
        str(path.relative_to(ROOT))
        for path in files
        if "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")
    }


def test_sdist_holds_all_that_a_build_needs(sdist: Path) -> None:
    wanted = _files_of("cacovid/**/*", "csrc/**/*", "kernels/**/*")
    wanted |= {"pyproject.toml", "setup.py", "CMakeLists.txt", "LICENSE", "README.md"}
    found = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert wanted - found == set()
    assert not [name for name in found if name.endswith((".so", ".pyc")) or ".venv" in name]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = _files_of("cacovid/viz/report/page.*")
    sources = _files_of("cacovid/**/*.py", "cacovid/assets/**/*") | pages | {"cacovid/py.typed"}
    kernels = {
        f"cacovid/kernels/{Path(name).relative_to('kernels/triton')}"
        for name in _files_of("kernels/triton/**/*.py")
    }
    configs = {f"cacovid/{name}" for name in _files_of("kernels/configs/*.json")}
    assert (sources | kernels | configs) - names == set()
    assert "cacovid/_C.so" in names
    assert any(re.fullmatch(r"cacovid/_host\..*\.so", name) for name in names)
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"cacovid"}
    assert not [name for name in names if "tests" in name.split("/")]


def test_wheel_metadata(wheel: Path) -> None:
    opened = zipfile.ZipFile(wheel)

    def read(name: str) -> str:
        (found,) = (n for n in opened.namelist() if n.endswith(f".dist-info/{name}"))
        return opened.read(found).decode()

    metadata = Parser().parsestr(read("METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    core = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert sorted(core) == ["huggingface_hub", "numpy", "safetensors", "torch>=2.10"]
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert extras >= {"all", "cli", "dev", "hf", "models", "test", "triton", "video", "viz"}
    assert "cacovid = cacovid.cli:main" in read("entry_points.txt")


def test_the_wheel_serves_with_its_own_library(unpacked: Path) -> None:
    code = """
import warnings
warnings.simplefilter("error")
from cacovid import _extension
assert _extension.load().loaded, _extension.load().reason
import torch, cacovid.kernels
tree = cacovid.__file__.rsplit("/", 1)[0]
assert cacovid.kernels.__file__.startswith(tree), cacovid.kernels.__file__
info = _extension.host().build_info()
assert info["version"] == cacovid.__version__ and info["cpu_ops"] and not info["cuda_ops"], info
keep = cacovid.ops.select_tokens(torch.arange(8.0), torch.zeros(2), [(2, 2, 2)], 0.5)
assert keep.tolist() == sorted(keep.tolist()) and len(keep) == 4
print("fine")
"""
    assert _python(code, unpacked).strip() == "fine"


_USE = """
import cacovid, torch
scores = torch.randn(40, generator=torch.Generator().manual_seed(0))
args = (scores, [(4, 2, 5)], 0.25, 3)
first, second = (cacovid.ops.ocss_sample(*args, seed=7) for _ in range(2))
assert torch.equal(first, cacovid.reference.ocss_sample(*args, seed=7))
assert torch.equal(first, second) and first.shape == (3, 8)
"""


def _warnings_of_use(tree: Path, **environment: str) -> list[str]:
    """What an import and two calls of an op print as warnings of ours."""
    command = [sys.executable, "-W", "always", "-c", _USE]
    done = _run(command, tree.parent, PYTHONPATH=str(tree), **environment)
    return re.findall(r"RuntimeWarning: (.*compiled part of cacovid.*)", done.stderr)


def test_without_the_compiled_part_one_warning_and_the_reference(unpacked: Path) -> None:
    for library in (unpacked / "cacovid").glob("*.so"):
        library.unlink()
    (warning,) = _warnings_of_use(unpacked)
    assert "_C.so is missing" in warning and "pip install" in warning
    assert _warnings_of_use(unpacked, CACOVID_BACKEND="reference") == []


def test_a_broken_library_is_one_warning_that_says_why(unpacked: Path) -> None:
    (unpacked / "cacovid" / "_C.so").write_bytes(b"not a library" * 100)
    (warning,) = _warnings_of_use(unpacked)
    assert "_C.so cannot be loaded into torch" in warning and "ELF" in warning


def test_a_library_of_another_build_is_refused(unpacked: Path) -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
from cacovid import _extension
_extension.INTERFACE += 1
status = _extension.load()
assert not status.loaded
print(status.reason)
"""
    assert "is from another build" in _python(code, unpacked)


def test_without_native_code_the_wheel_is_pure(sdist: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(sdist, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    wheel = _wheel_of(source, tmp_path / "pure", CACOVID_SKIP_NATIVE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_without_torch_only_the_host_module_is_built(sdist: Path, tmp_path: Path) -> None:
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
    pybind11 = pytest.importorskip("pybind11")
    if cmake is None or not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("needs cmake and the headers of Python")
    build, installed = tmp_path / "build", tmp_path / "installed"
    configure = [cmake, "-S", sdist, "-B", build, "-DCACOVID_TORCH_DIR=NONE"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    assert "torch is not installed" in _run(configure, tmp_path).stderr
    _run([cmake, "--build", build], tmp_path)
    _run([cmake, "--install", build, "--prefix", installed], tmp_path)
    (host,) = (installed / "cacovid").iterdir()
    assert host.name.startswith("_host.")
    code = "import _host; print(_host.build_info())"
    printed = _run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(host.parent)).stdout
    assert "'cpu_ops': False" in printed and "'torch': ''" in printed


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("name", ["_C.so", "_C_cuda.so"])
def test_only_the_stable_abi_is_used(name: str) -> None:
    library = ROOT / "cacovid" / name
    if not library.is_file():
        pytest.skip(f"{name} is not built here")
    symbols = _run(["nm", "-D", "-C", "--undefined-only", library], ROOT).stdout
    unstable = re.findall(r"\b(?:at|c10|torch::jit|torch::autograd)::\S+|\bPy[A-Z_]\S+", symbols)
    assert unstable == []
    assert "aoti_torch_" in symbols or "torch_library_impl" in symbols


def test_the_cuda_library_is_built_where_nvcc_is() -> None:
    from cacovid import _extension

    host = _extension.host()
    if host is None or not list((ROOT / "csrc" / "cuda").glob("*.cu")):
        pytest.skip("no build information, or no CUDA sources")
    info = host.build_info()
    if not info["nvcc"]:
        pytest.skip(f"no nvcc at build time, or CACOVID_CUDA={info['cuda_option']}")
    assert info["cuda_ops"]
    assert (ROOT / "cacovid" / "_C_cuda.so").is_file()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_cuda_library_loads_where_torch_offers_what_it_needs(tmp_path: Path) -> None:
    """Beside a CPU-only torch, with a stand-in for the three functions of libtorch_cuda.so.

    Everything else must resolve to the stable ABI of the torch at hand, and the ops get the CUDA
    kernels that the table of ops promises.
    """
    import torch

    library = ROOT / "cacovid" / "_C_cuda.so"
    if torch.version.cuda is not None or not library.is_file():
        pytest.skip("needs _C_cuda.so and a torch without CUDA")
    source = tmp_path / "stand_in.cpp"
    source.write_text("""
extern "C" {
int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
int torch_c10_cuda_check_msg(int, const char*, const char*, int, bool, char**) { return 1; }
void torch_c10_cuda_free_error_msg(char*) {}
}
""")
    stand_in = tmp_path / "libtorch_cuda.so"
    name = "-Wl,-soname,libtorch_cuda.so"
    _run(["c++", "-shared", "-fPIC", name, "-o", stand_in, source], tmp_path)
    code = f"""
import ctypes, torch
ctypes.CDLL({str(stand_in)!r}, mode=ctypes.RTLD_GLOBAL)
from cacovid import _extension
assert _extension.load().loaded, _extension.load().reason
torch.ops.load_library({str(library)!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
from cacovid.ops._registry import TABLE
promised = {{n for n, spec in TABLE.items() if "cuda" in spec.backends and spec.schema}}
missing = {{n for n in promised if not has("cacovid::" + n, "CUDA")}}
import json
print(json.dumps(sorted(missing)), json.dumps(sorted(promised)), sep="\\n")
"""
    missing, promised = _run([sys.executable, "-c", code], ROOT).stdout.splitlines()
    assert json.loads(missing) == []
    # `score` and its gradient go to CUDA by Triton.
    assert json.loads(promised) == [
        "bernoulli_sample", "cpo_loss", "density_peaks", "farthest_point", "frame_sample",
        "gather", "ocss_sample", "select_and_gather", "select_tokens",
    ]  # fmt: skip


def test_all_that_set_up_installs_is_pinned() -> None:
    pins = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += [requirement for name in ("dev", "test", "all") for requirement in extras[name]]
    wanted += [r for name in ("models", "video", "cli", "viz", "triton") for r in extras[name]]
    names = {re.split(r"[\[<>=; ]", requirement)[0] for requirement in wanted} - {"cacovid"}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in names} - pins == set()


def test_there_is_no_package_named_kernels() -> None:
    # Another project's package of that name hooks into setuptools and is probed by transformers.
    assert not (ROOT / "kernels" / "__init__.py").exists()
