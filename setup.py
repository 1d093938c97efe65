"""Drives CMake for the compiled part and maps the Triton kernels into the package.

Everything else about the package stands in `pyproject.toml`, the native sources in
`CMakeLists.txt`, and the environment variables in `cacovid/settings.py`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that the compiled part is missing is why we are here
    from cacovid import settings
    from cacovid._version import __version__

LIBRARIES = ("_C.so", "_C_cuda.so", "_host.*.so")


def find_torch() -> str:
    """The folder of the torch package, or `NONE`.

    In pip's isolated build the environment that is installed into is hidden from imports, but its
    files are there, and headers and a library to link to are all that is needed.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        return spec.submodule_search_locations[0]
    for place in ("purelib", "platlib"):
        folder = Path(sysconfig.get_path(place), "torch")
        if (folder / "version.py").is_file():
            return str(folder)
    return "NONE"


def find_tool(name: str, module: str, attribute: str) -> str:
    """The path of `cmake` or `ninja`: of the Python package if installed, else of the system."""
    try:
        folder = getattr(importlib.import_module(module), attribute)
        path = shutil.which(name, path=folder)
    except (ImportError, AttributeError):
        path = None
    path = path or shutil.which(name)
    if path is None:
        raise SystemExit(f"cacovid: {name} is not found; run `pip install {name}`")
    return path


def find_pybind11() -> str:
    """The folder of pybind11's CMake files, or `NOTFOUND`: only `_host` needs it."""
    try:
        import pybind11
    except ImportError:
        return "NOTFOUND"
    return pybind11.get_cmake_dir()


class CMakeBuild(build_ext):
    """Configures, compiles and installs the libraries of `CMakeLists.txt` into the package."""

    def run(self) -> None:
        prefix = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        # One folder for all ways to install: a second build only compiles what has changed.
        kind = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        sanitize = settings.get("CACOVID_SANITIZE")
        build = ROOT / "build" / f"native-{kind}{'' if sanitize == 'none' else f'-{sanitize}'}"
        torch = find_torch()
        if torch == "NONE":
            print(
                "cacovid: torch is not installed, so the tensor ops are NOT compiled; install "
                "torch and then cacovid again to have them",
                file=sys.stderr,
            )
        cmake = find_tool("cmake", "cmake", "CMAKE_BIN_DIR")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'ninja', 'BIN_DIR')}",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={find_pybind11()}",
            f"-DCACOVID_TORCH_DIR={torch}",
            f"-DCACOVID_VERSION={__version__}",
            f"-DCACOVID_SANITIZE={sanitize}",
            f"-DCACOVID_CUDA={settings.get('CACOVID_CUDA')}",
            f"-DCACOVID_CUDA_ARCHITECTURES={settings.get('CACOVID_CUDA_ARCHITECTURES')}",
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build)], check=True)
            for stale in self._libraries(prefix):
                stale.unlink()
            subprocess.run([cmake, "--install", str(build)], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"cacovid: the compiled part could not be built ({error}); the messages above say "
                f"why. A C++20 compiler is needed (Debian, Ubuntu: apt install g++). To install "
                f"without the compiled part, set CACOVID_SKIP_NATIVE=1; it is slower."
            ) from error

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._libraries(Path(self.build_lib))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}  # an editable build installs into the checkout itself

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in lists them

    def _libraries(self, prefix: Path) -> list[Path]:
        return [path for name in LIBRARIES for path in (prefix / "cacovid").glob(name)]


kernel_packages = [
    "cacovid.kernels",
    *(f"cacovid.kernels.{name}" for name in find_packages("kernels/triton")),
]
if list(ROOT.glob("kernels/configs/*.json")):
    kernel_packages.append("cacovid.kernels.configs")
skip_native = settings.get("CACOVID_SKIP_NATIVE") == "1"

setup(
    packages=[*find_packages(include=["cacovid", "cacovid.*"]), *kernel_packages],
    # `kernels/` itself is no package: a package of that name would be taken for another project's.
    package_dir={"cacovid.kernels": "kernels/triton", "cacovid.kernels.configs": "kernels/configs"},
    package_data={
        "cacovid": ["py.typed", "assets/**/*", "viz/report/page.*"],
        "cacovid.kernels.configs": ["*.json"],
    },
    include_package_data=False,
    # A name for setuptools to know that the wheel is not pure; CMake knows the sources.
    ext_modules=[] if skip_native else [Extension("cacovid._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
