#!/usr/bin/env bash
# Builds, tests and measures on a GPU machine, within ten minutes and without a network.
#
#   bench/device.sh              all of it; figures go to bench/results/<device>-<date>.csv
#   bench/device.sh --dry-run    says what would be done and what is missing
#   bench/device.sh --rehearse   the same steps on the CPU, with small sizes
#
# Nothing is installed and the checkout stays as it is: the package is put together in build/device
# and found by PYTHONPATH. PYTHON names the interpreter that has torch; figures and logs go to OUT
# where it is set. A step that fails does not stop those that do not need it; the exit status is 1
# if one has failed, and the last lines say which.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

limit=570 # seconds for everything
mode=measure
for argument in "$@"; do
  case $argument in
    --dry-run) mode=dry-run ;;
    --rehearse) mode=rehearse ;;
    *)
      echo "device.sh: unknown argument $argument; expected --dry-run or --rehearse" >&2
      exit 2
      ;;
  esac
done

python=${PYTHON:-python3}
work=$PWD/build/device
site=$work/site
out=${OUT:-bench/results}
failed=() missing=()

say() { echo "device.sh [${SECONDS}s]: $*"; }
left() { echo $((limit - SECONDS)); }
have() { command -v "$1" >/dev/null 2>&1; }

# --- What is there -------------------------------------------------------------------------------
have "$python" || missing+=("$python (set PYTHON to an interpreter with torch)")
# One interpreter for all questions: importing torch takes seconds.
facts=$("$python" - 2>/dev/null <<'PYTHON'
import importlib.util
import sys

import torch

gpu = torch.cuda.is_available()
print(torch.__version__)
print(torch.__path__[0])
print(sys.executable)
print("%d%d-real" % torch.cuda.get_device_capability() if gpu else "")
print(torch.cuda.get_device_name() if gpu else "cpu")
print(importlib.util.find_spec("pytest") is not None)
try:
    import pybind11

    print(pybind11.get_cmake_dir())
except ImportError:
    print("NOTFOUND")
PYTHON
)
{
  read -r torch
  read -r torch_folder
  read -r executable
  read -r architecture
  read -r name
  read -r pytest
  read -r pybind11
} <<<"$facts"
[ -n "$torch" ] || missing+=("torch for $python")
if [ "$mode" = rehearse ]; then
  device=cpu architecture=
else
  device=cuda
  [ -n "$architecture" ] || missing+=("a CUDA device that torch sees")
fi
# cmake of the interpreter's own packages counts too: pip puts it beside the interpreter.
PATH=$PATH:$(dirname "${executable:-.}"):${CUDA_HOME:-/usr/local/cuda}/bin
have cmake || missing+=("cmake")
[ "$device" = cpu ] || have nvcc || missing+=("nvcc (CUDA_HOME names its folder)")
have c++ || have g++ || missing+=("a C++ compiler")
if have ninja; then
  generator=Ninja
else
  generator="Unix Makefiles"
  have make || missing+=("ninja or make")
fi
[ "$pytest" = True ] || missing+=("pytest for $python (the tests)")
name=$(echo "$name" | tr -cs 'A-Za-z0-9\n' '-' | tr '[:upper:]' '[:lower:]')
commit=$(git rev-parse --short=12 HEAD 2>/dev/null)
[ -z "$commit" ] || git diff --quiet HEAD 2>/dev/null || commit=$commit+changes
mapfile -t tests < <(
  {
    find tests/ops tests/session -name 'test_*cuda*.py'
    grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests
  } | sort -u
)

say "device $name, torch ${torch:-missing}, ${architecture:-no CUDA} commit ${commit:-not known}"
say "build with cmake and $generator into $site"
say "tests: ${tests[*]}"
say "figures: $out/$name-$(date +%F).csv"
for thing in "${missing[@]}"; do say "missing: $thing"; done
if [ "$mode" = dry-run ]; then
  [ ${#missing[@]} -eq 0 ]
  exit
fi
if [ -z "$torch" ] || { [ "$device" = cuda ] && [ -z "$architecture" ]; }; then
  say "nothing was measured: see what is missing above"
  exit 1
fi
mkdir -p "$work" "$out"

# --- Steps -----------------------------------------------------------------------------------------
# Runs a step with a limit in seconds, its output in a file of its own too.
step() {
  local name=$1 most=$2
  shift 2
  say "$name"
  [ "$most" -le "$(left)" ] || most=$(left)
  if [ "$most" -le 0 ]; then
    failed+=("$name: no time was left")
    return 1
  fi
  timeout --kill-after=10 "$most" "$@" 2>&1 | tee "$out/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 124 ] && failed+=("$name: longer than $most s") && return 1
  [ "$status" -ne 0 ] && failed+=("$name: exit status $status") && return 1
  return 0
}

build() {
  rm -rf "$site" && mkdir -p "$site" && cp -r cacovid "$site/" || return 1
  rm -f "$site"/cacovid/*.so
  # As setup.py maps them: kernels/triton is cacovid.kernels.
  mkdir -p "$site/cacovid/kernels" && cp -r kernels/triton/. "$site/cacovid/kernels/" || return 1
  if [ -d kernels/configs ]; then cp -r kernels/configs "$site/cacovid/kernels/"; fi
  cmake -S . -B "$work/native" -G "$generator" \
    -DCMAKE_INSTALL_PREFIX="$site" \
    -DPython_EXECUTABLE="$executable" \
    -DCACOVID_TORCH_DIR="$torch_folder" \
    -Dpybind11_DIR="$pybind11" \
    -DCACOVID_CUDA="$([ "$device" = cuda ] && echo 1 || echo 0)" \
    -DCACOVID_CUDA_ARCHITECTURES="$architecture" &&
    cmake --build "$work/native" --parallel "$(nproc)" &&
    cmake --install "$work/native"
}
export -f build
export python work site device generator pybind11 architecture executable torch_folder

# PYTHONSAFEPATH keeps the checkout's own cacovid, which has no libraries, out of sys.path.
export PYTHONPATH=$site PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1

run_tests() {
  "$python" -m pytest -q -rs -o pythonpath= -p no:cacheprovider "$@" | tee "$work/tests.txt"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || return "$status"
  if [ "$device" = cuda ] && ! grep -q '[0-9] passed' "$work/tests.txt"; then
    echo "no test ran: all were skipped"
    return 1
  fi
}
export -f run_tests

if step build 240 bash -c build; then
  step doctor 60 "$python" -c 'from cacovid import doctor; print(doctor.render(doctor.report()))'
  step tests 150 bash -c 'run_tests "$@"' run_tests "${tests[@]}"
  measure=("$python" -m cacovid.benchmark --device "$device" --commit "$commit")
  csv=$out/$name-$(date +%F).csv
  if [ "$device" = cuda ]; then
    # Beside torch.compile at the sizes of the targets; then every size without it.
    step headline $(($(left) / 2)) "${measure[@]}" --tokens 6272 50176 --hidden 3584 \
      --ops score prune select_tokens gather ocss_sample \
      --seconds 1 --most-seconds $(($(left) / 2 - 60)) --csv "$work/headline.csv"
    step sweep "$(left)" "${measure[@]}" --without-compile --seconds 0.4 \
      --most-seconds $(($(left) - 30)) --csv "$work/sweep.csv"
  else
    step headline "$(left)" "${measure[@]}" --quick --tokens 784 --hidden 64 --seconds 0.02 \
      --ops score select_tokens ocss_sample --most-seconds 60 --csv "$work/headline.csv"
    rm -f "$work/sweep.csv"
  fi
  rm -f "$csv"
  for part in "$work/headline.csv" "$work/sweep.csv"; do
    [ -f "$part" ] || continue
    if [ -f "$csv" ]; then tail -n +2 "$part" >>"$csv"; else cp "$part" "$csv"; fi
  done
  [ -f "$csv" ] && say "$(($(wc -l <"$csv") - 1)) figures in $csv"
else
  say "not built, so neither tested nor measured"
fi

for what in "${failed[@]}"; do say "FAILED $what"; done
[ ${#failed[@]} -eq 0 ] && say "done"
[ ${#failed[@]} -eq 0 ]
