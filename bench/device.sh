#!/usr/bin/env bash
# Builds, tests and measures on a GPU machine, within ten minutes and without a network.
#
#   bench/device.sh              all of it; figures go to bench/results/<device>-<date>.csv
#   bench/device.sh --dry-run    says what would be done and what is missing
#   bench/device.sh --rehearse   the same steps on the CPU, with small sizes
#
# Nothing is installed: the package is put together in build/device and found by PYTHONPATH. PYTHON
# names the interpreter that has torch. With OUT set, everything goes there, in a handful of files:
# the figures, the log of all steps, the tuned launch configuration. Without it figures go to
# bench/results, the configuration to kernels/configs, the log to build/device. A step that fails
# does not stop those that do not need it (without the compiled libraries Triton's `score` is still
# tested, tuned and measured); the exit status is 1 if one has failed, and the last lines say which.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

limit=570   # seconds for everything
reserve=150 # of them, that nothing may take before the figures
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
tuned=${OUT:-kernels/configs}
failed=() missing=()

say() { echo "device.sh [${SECONDS}s]: $*"; }
left() { echo $((limit - reserve - SECONDS)); }
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
csv=$out/$name-$(date +%F).csv
log=${OUT:-$work}/$name-$(date +%F).log

say "device $name, torch ${torch:-missing}, ${architecture:-no CUDA} commit ${commit:-not known}"
say "build with cmake and $generator into $site"
say "tests: ${tests[*]}"
say "figures: $csv; log: $log"
[ "$device" = cpu ] || say "tuned launch configuration: $tuned"
for thing in "${missing[@]}"; do say "missing: $thing"; done
if [ "$mode" = dry-run ]; then
  [ ${#missing[@]} -eq 0 ]
  exit
fi
if [ -z "$torch" ] || { [ "$device" = cuda ] && [ -z "$architecture" ]; }; then
  say "nothing was measured: see what is missing above"
  exit 1
fi
mkdir -p "$work" "$out" "$tuned" && : >"$log" || exit 1

# --- Steps -----------------------------------------------------------------------------------------
# Runs a step with a limit in seconds; what it says goes to the log too.
step() {
  local name=$1 most=$2
  shift 2
  say "$name" | tee -a "$log"
  [ "$most" -le "$(left)" ] || most=$(left)
  if [ "$most" -le 0 ]; then
    failed+=("$name: no time was left")
    return 1
  fi
  timeout --kill-after=10 "$most" "$@" 2>&1 | tee -a "$log"
  local status=${PIPESTATUS[0]}
  case $status in
    0) return 0 ;;
    124 | 137) failed+=("$name: longer than $most s") ;;
    *) failed+=("$name: exit status $status") ;;
  esac
  return 1
}

# The package without its libraries, as setup.py maps it: kernels/triton is cacovid.kernels.
package() {
  rm -rf "$site" && mkdir -p "$site" && cp -r cacovid "$site/" || return 1
  rm -rf "$site"/cacovid/*.so "$site/cacovid/kernels"
  mkdir -p "$site/cacovid/kernels" && cp -r kernels/triton/. "$site/cacovid/kernels/" &&
    cp -r kernels/configs "$site/cacovid/kernels/"
}

build() {
  local native="$work/native-${generator%% *}" # a folder of CMake's serves one generator
  cmake -S . -B "$native" -G "$generator" \
    -DCMAKE_INSTALL_PREFIX="$site" \
    -DPython_EXECUTABLE="$executable" \
    -DCACOVID_TORCH_DIR="$torch_folder" \
    -Dpybind11_DIR="$pybind11" \
    -DCACOVID_CUDA="$([ "$device" = cuda ] && echo 1 || echo 0)" \
    -DCACOVID_CUDA_ARCHITECTURES="$architecture" &&
    cmake --build "$native" --parallel "$(env -u OMP_NUM_THREADS nproc)" &&
    cmake --install "$native"
}
export -f build
export python work site tuned device generator pybind11 architecture executable torch_folder

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

# The winners are used from here on, and kept.
tune() {
  local stamp=$work/before-tuning
  touch "$stamp" && "$python" bench/tune_score.py --seconds 45 --write || return
  find "$site/cacovid/kernels/configs" -name '*.json' -newer "$stamp" -exec cp {} "$tuned/" \;
}
export -f tune

# Figures go to a file after every case, so that one that is stopped keeps what it has.
measure() { # name, most seconds, arguments
  local part=$1 most=$2
  shift 2
  step "$part" "$most" "$python" -m cacovid.benchmark --device "$device" --commit "$commit" \
    --most-seconds $((most > 60 ? most - 45 : most / 4)) --csv "$work/$part.csv" "$@"
}

rm -f "$csv" "$work/headline.csv" "$work/sweep.csv"
package || { say "FAILED package: the files could not be copied to $site" && exit 1; }
headline=(score prune select_tokens gather ocss_sample)
sweep=()
if step build 200 bash -c build; then
  step doctor 40 "$python" -c 'from cacovid import doctor; print(doctor.render(doctor.report()))'
  step tests 150 bash -c 'run_tests "$@"' run_tests "${tests[@]}"
else
  say "the compiled libraries are missing: only score, in Triton, is tested and measured"
  headline=(score) sweep=(--ops score)
fi
if [ "$device" = cuda ]; then
  step triton 100 bash -c 'run_tests "$@"' run_tests tests/kernels
  step examples 40 bash -c 'run_tests "$@"' run_tests tests/test_docs.py \
    -k 'test_examples_run and using-the-ops'
  step tune 70 bash -c tune
  reserve=0
  # The sizes of the targets beside torch.compile; then the others, without it.
  measure headline $(($(left) / 2)) --tokens 6272 50176 --hidden 3584 --ops "${headline[@]}" \
    --seconds 1
  measure sweep "$(left)" --without-compile --seconds 0.3 "${sweep[@]}"
else
  reserve=0
  measure headline "$(left)" --quick --tokens 784 --hidden 64 --seconds 0.02 \
    --ops score select_tokens ocss_sample
fi
for part in "$work/headline.csv" "$work/sweep.csv"; do
  [ -f "$part" ] || continue
  if [ -f "$csv" ]; then tail -n +2 "$part" >>"$csv"; else cp "$part" "$csv"; fi
done
[ -f "$csv" ] && say "$(($(wc -l <"$csv") - 1)) figures in $csv"

for what in "${failed[@]}"; do say "FAILED $what"; done | tee -a "$log"
[ ${#failed[@]} -eq 0 ] && say "done"
[ ${#failed[@]} -eq 0 ]
