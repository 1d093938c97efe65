"""`bench/device.sh` as far as it goes without a GPU: what it would do, and what is missing."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "device.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def test_a_dry_run_tells_the_steps_and_what_is_missing(tmp_path):
    done = run("--dry-run", OUT=str(tmp_path))
    assert f"torch {torch.__version__}" in done.stdout
    steps = [line for line in done.stdout.splitlines() if "]: tests: " in line]
    for name in ("ops/test_ops_cuda", "session/test_session_cuda", "ops/test_ops_stations"):
        assert f"tests/{name}.py" in steps[0]  # found by their marker
    assert f"figures: {tmp_path}/" in done.stdout and ".csv" in done.stdout
    missing = [line for line in done.stdout.splitlines() if "missing: " in line]
    assert any("CUDA device" in line for line in missing) != torch.cuda.is_available()
    assert done.returncode == (1 if missing else 0)
    assert list(tmp_path.iterdir()) == []  # nothing was done


def test_a_rehearsal_leaves_the_results_alone():
    # The script up to its first step: what it says of places, nothing built.
    script = f"set -- --rehearse; exec 2>&1; source <(sed '/^mkdir -p/,$d' {SCRIPT}); echo =$out="
    done = subprocess.run(
        ["bash", "-c", script, str(SCRIPT)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHON": sys.executable, "OUT": ""},
    )  # fmt: skip
    assert "build/device/rehearsal=" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_measured(tmp_path):
    done = run(OUT=str(tmp_path))
    assert done.returncode == 1
    assert "nothing was measured: see what is missing above" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_without_torch_is_told(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages
    python.chmod(0o755)
    done = run("--dry-run", PYTHON=str(python))
    assert done.returncode == 1
    assert f"missing: torch for {python}" in done.stdout
    assert "missing: nosuch" in run("--dry-run", PYTHON="nosuch").stdout


def test_wrong_usage():
    done = run("--fast")
    assert done.returncode == 2 and "unknown argument --fast" in done.stderr


#: An interpreter that says what a GPU machine's would, writes down what it is asked for, and does
#: next to nothing.
PYTHON = r"""#!/bin/bash
printf '%s\n' "$*" >>"$CALLS"
case "$*" in
  -) cat >/dev/null
     printf '%s\n' 2.11.0 /torch "$0" 90-real 'NVIDIA H200' True True True "$MATPLOTLIB" /pybind
     ;;
  '- '*) cat >/dev/null; touch "$3/score.png" ;;
  '-m pytest'*) echo '3 passed' ;;
  'bench/tune_score.py'*) echo '{}' >build/device/site/cacovid/kernels/configs/nvidia-h200.json ;;
  'bench/prefill.py'*) mkdir -p build/device/prefill
     for kind in csv md png; do touch "build/device/prefill/prefill-7b-cuda.$kind"; done ;;
  '-m cacovid.benchmark'*)
     file=$(sed -E 's/.*--csv ([^ ]+).*/\1/' <<<"$*")
     [ -f "$file" ] || echo op >"$file"
     echo row >>"$file" ;;
esac
[[ "$*" != *"${FAILING:-nothing}"* ]]
"""

#: Tells the limit of each step, and says of a step that it took longer.
TIMEOUT = r"""#!/bin/bash
printf 'limit %s: %s\n' "$2" "${*:3}" >>"$CALLS"
[[ -n "$SLOW" && "$*" == *"$SLOW"* ]] && exit 124
shift 2
exec "$@"
"""

STEPS = (
    "-c build", "doctor.render", "tests/ops/test_ops_cuda.py", "tests/kernels", "-c parity",
    "--ops prune self_attention score ocss_sample select_tokens gather pack_rollouts", "-c tune",
    "--ops prune self_attention score --seconds", "--tokens 50176 --hidden 3584 --ops score",
    "--llm 7b --tokens 6272", "using-the-ops", "--missing", "-c draw",
)  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    """A checkout in small and commands that stand for those of a GPU machine."""
    root, tools, out = tmp_path / "tree", tmp_path / "tools", tmp_path / "out"
    for folder in ("bench/results", "cacovid", "kernels/triton", "kernels/configs", "tests/kernels",
                   "tests/ops", "tests/session"):  # fmt: skip
        (root / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, root / "bench")
    (root / "tests/ops/test_ops_cuda.py").touch()
    (root / "bench/results/parity.md").write_text("parity\n")
    tools.mkdir()
    for name in ("cmake", "nvcc", "ninja", "c++"):
        (tools / name).write_text(f'#!/bin/bash\n[ "$FAILING" != {name} ]\n')
    (tools / "python").write_text(PYTHON)
    (tools / "timeout").write_text(TIMEOUT)
    for path in tools.iterdir():
        path.chmod(0o755)

    def measure(**environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", str(root / "bench" / "device.sh")], capture_output=True, text=True,
            timeout=120, check=False,
            env={
                **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls),
                "PYTHON": "python", "MATPLOTLIB": "True", "SLOW": "", "OUT": str(out),
                **environment,
            },
        )  # fmt: skip
        limits = [
            (int(seconds), command)
            for seconds, command in re.findall(r"^limit (\d+): (.*)", calls.read_text(), re.M)
        ]
        return done, limits, calls.read_text(), {path.name: path for path in out.iterdir()}

    return measure


def table_of(files):
    (path,) = (path for name, path in files.items() if re.match(r"nvidia-h200-[\d-]+\.csv", name))
    with open(path) as file:
        return list(csv.reader(file))


def test_steps_by_their_worth_each_with_a_limit(machine):
    done, limits, calls, _ = machine()
    assert done.returncode == 0, done.stdout + done.stderr
    for mark, (_, command) in zip(STEPS, limits, strict=True):
        assert mark in command
    figures = [seconds for seconds, command in limits if "cacovid.benchmark" in command]
    assert min(figures) >= 60 and max(seconds for seconds, _ in limits) < 570
    # Nothing before the headline can take the time that it has.
    headline = next(i for i, mark in enumerate(STEPS) if mark.startswith("--ops prune"))
    reserve = int(re.search(r"^reserve=(\d+)", SCRIPT.read_text(), re.M)[1])
    assert reserve > limits[headline][0]
    # No case begins so late that its step would be stopped.
    for seconds, command in limits:
        begun = re.search(r"--most-seconds (\d+)", command)
        assert begun is None or int(begun[1]) <= seconds - 30
    assert "-m pytest -q -rs -o pythonpath= -p no:cacheprovider -n " in calls
    assert "bench/parity.py --device cuda --rollout-frames 10000000 --write" in calls


def test_what_comes_back_is_a_handful_of_files(machine):
    _, _, _, files = machine()
    assert len(table_of(files)) == 1 + 4  # a row of each step that measures
    day = next(name for name in files if name.endswith(".csv") and name.startswith("nvidia"))
    assert set(files) == {
        day, day.replace(".csv", ".log"), "nvidia-h200.json", "parity.md", "prefill-7b-cuda.csv",
        "prefill-7b-cuda.md", "nvidia-h200-plots.tar.gz",
    }  # fmt: skip
    assert len(files) <= 8 and all(path.is_file() for path in files.values())
    listed = subprocess.run(
        ["tar", "-tf", files["nvidia-h200-plots.tar.gz"]], capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert "plots/score.png" in listed and "plots/prefill-7b-cuda.png" in listed


@pytest.mark.parametrize("slow", ["tests/kernels", "-c parity", "-c tune", "--ops prune", "--llm"])
def test_a_step_that_takes_too_long_is_told_and_keeps_nothing_up(machine, slow):
    done, limits, _, files = machine(SLOW=slow)
    assert done.returncode == 1 and "longer than" in done.stdout
    ran = [mark for mark in STEPS if any(mark in command for _, command in limits)]
    left_out = {"--ops prune self_attention score --seconds"} if slow == "-c tune" else set()
    assert set(STEPS) - set(ran) == left_out
    assert len(table_of(files)) >= 3


def test_without_the_libraries_triton_is_tested_and_measured(machine):
    done, limits, calls, files = machine(FAILING="cmake")
    assert done.returncode == 1 and "FAILED build: exit status 1" in done.stdout
    assert "tests/kernels" in calls and "bench/tune_score.py" in calls
    assert not any(mark in calls for mark in ("test_ops_cuda", "parity.py", "--llm", "using-the"))
    measured = [command for _, command in limits if "cacovid.benchmark" in command]
    assert len(measured) == 4 and all("--ops score" in command for command in measured)
    assert len(table_of(files)) == 5


def test_without_matplotlib_there_are_no_pictures(machine):
    done, _, calls, _ = machine(MATPLOTLIB="False")
    assert done.returncode == 0 and "-c draw" not in calls


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == "" and done.returncode == 0
