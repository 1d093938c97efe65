#!/usr/bin/env bash
# Builds, tests and measures on a GPU machine, within ten minutes and without a network.
#
#   bench/device.sh              all of it; figures go to bench/results/<device>-<date>.csv
#   bench/device.sh --dry-run    says what would be done and what is missing
#   bench/device.sh --rehearse   the same steps on the CPU, with small sizes
#
# Nothing is installed: the package is put together in build/device and found by PYTHONPATH. PYTHON
# names the interpreter that has torch. With OUT set, everything goes there, in a handful of files:
# the figures, the log of all steps, the tuned launch configuration, the page of the samplers'
# parity, the prefill's figures, an archive of pictures. Without it figures, pages and pictures go
# to bench/results, the configuration to kernels/configs, the log to build/device; a rehearsal's
# all to build/device/rehearsal.
#
# Steps stand in the order of their worth: build, tests, parity, the figures that have targets,
# tuning and what it changes, the prefill, examples, all other figures. Each has a limit of its own,
# and figures go to their file after every case, so that a step that is stopped leaves what it has.
# A step that fails does not stop those that do not need it (without the compiled libraries Triton's
# `score` is still tested, tuned and measured); the exit status is 1 if one has failed, and the last
# lines say which.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

limit=570   # seconds for everything
reserve=170 # of them, that nothing may take before the figures
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
[ "$mode" != rehearse ] || OUT=${OUT:-$work/rehearsal}
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
for module in ("pytest", "xdist", "transformers", "matplotlib"):
    print(importlib.util.find_spec(module) is not None)
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
  read -r xdist
  read -r transformers
  read -r matplotlib
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
# Tests of Triton's kernels spend their time on compiling.
cores=$(env -u OMP_NUM_THREADS nproc)
parallel=()
[ "$xdist" != True ] || parallel=(-n "$((cores < 16 ? (cores + 1) / 2 : 8))")
name=$(echo "$name" | tr -cs 'A-Za-z0-9\n' '-' | tr '[:upper:]' '[:lower:]')
commit=$(git rev-parse --short=12 HEAD 2>/dev/null)
[ -z "$commit" ] || git diff --quiet HEAD 2>/dev/null || commit=$commit+changes
mapfile -t tests < <(
  {
    find tests/ops tests/session -name 'test_*cuda*.py'
    grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests
  } | grep -v '^tests/kernels/' | sort -u
)
csv=$out/$name-$(date +%F).csv
log=${OUT:-$work}/$name-$(date +%F).log
page=$out/parity.md

say "device $name, torch ${torch:-missing}, ${architecture:-no CUDA} commit ${commit:-not known}"
say "build with cmake and $generator into $site"
say "tests: ${tests[*]}"
say "steps: build, doctor, tests, triton, parity, headline, tune, tuned, compiled, prefill, \
examples, sweep, pictures"
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
    cmake --build "$native" --parallel "$cores" &&
    cmake --install "$native"
}
export -f build
export python work site out tuned device generator pybind11 architecture executable torch_folder
export csv page cores

# PYTHONSAFEPATH keeps the checkout's own cacovid, which has no libraries, out of sys.path.
export PYTHONPATH=$site PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1

run_tests() {
  # Workers are as many as cores; each one's references are to take one or two.
  OMP_NUM_THREADS=2 "$python" -m pytest -q -rs -o pythonpath= -p no:cacheprovider "$@" | tee "$work/tests.txt"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || return "$status"
  if [ "$device" = cuda ] && ! grep -q '[0-9] passed' "$work/tests.txt"; then
    echo "no test ran: all were skipped"
    return 1
  fi
}
export -f run_tests

parity() {
  if [ "$device" = cpu ]; then
    "$python" bench/parity.py --rollout-frames 20000
    return
  fi
  [ "$out" = bench/results ] || cp bench/results/parity.md "$page" || return
  "$python" bench/parity.py --device cuda --rollout-frames 10000000 --write "$page"
}
export -f parity

# The winners are used from here on, and kept.
tune() {
  "$python" bench/tune_score.py --seconds 25 --write || return
  local file
  for file in "$site"/cacovid/kernels/configs/*.json; do
    cmp -s "$file" "kernels/configs/${file##*/}" || cp "$file" "$tuned/"
  done
}
export -f tune

# Pages and tables go to the figures, pictures to the pictures.
prefill() {
  "$python" bench/prefill.py --device "$device" --policy cacovid --out "$work/prefill" "$@" || return
  cp "$work"/prefill/*.csv "$work"/prefill/*.md "$out/"
  find "$work/prefill" -name '*.png' -exec cp {} "$work/plots/" \;
}
export -f prefill

draw() {
  "$python" - "$csv" "$work/plots" <<'PYTHON'
import sys
from pathlib import Path

from cacovid.benchmark import plots, report

rows = [row for row in report.read_csv(Path(sys.argv[1])) if row["op"] != "train"]
plots.draw(rows, f"{rows[0]['device']}, {rows[0]['dtype']}", Path(sys.argv[2]))
PYTHON
}
export -f draw

# Figures go to the file after every case, beside those of the steps before. No case is begun in the
# last part of the step's time: torch takes seconds to load, and a case may take tens of them.
measure() { # name, most seconds, arguments
  local part=$1 most=$2
  shift 2
  [ "$most" -le "$(left)" ] || most=$(left)
  step "$part" "$most" "$python" -m cacovid.benchmark --device "$device" --commit "$commit" \
    --most-seconds $((most > 80 ? most - 40 : most / 2)) --csv "$csv" --append "$@"
}

rm -rf "$csv" "$work/prefill" "$work/plots" && mkdir "$work/plots" || exit 1
package || { say "FAILED package: the files could not be copied to $site" && exit 1; }
# What has targets, then the other ops; torch.compile, which takes long, has a step of its own.
headline=(prune self_attention score ocss_sample select_tokens gather pack_rollouts
  cpo_loss frame_sample farthest_point density_peaks)
built=yes
if step build 150 bash -c build; then
  step doctor 40 "$python" -c 'from cacovid import doctor; print(doctor.render(doctor.report()))'
  step tests 120 bash -c 'run_tests "$@"' run_tests "${parallel[@]}" "${tests[@]}"
else
  say "the compiled libraries are missing: only score, in Triton, is tested and measured"
  built='' headline=(score)
fi
if [ "$device" = cuda ]; then
  step triton 110 bash -c 'run_tests "$@"' run_tests "${parallel[@]}" tests/kernels
  [ -z "$built" ] || step parity 80 bash -c parity
  reserve=0
  measure headline 120 --without-compile --tokens 6272 50176 200704 --hidden 3584 \
    --ops "${headline[@]}" --seconds 0.5
  if step tune 90 bash -c tune; then
    # What the tuning changes, again; the paper's layer beside it, as it is compared with.
    again=(score)
    [ -z "$built" ] || again=(prune self_attention score)
    measure tuned 60 --without-compile --tokens 6272 50176 200704 --hidden 3584 \
      --ops "${again[@]}" --seconds 0.5
  fi
  measure compiled 70 --tokens 50176 --hidden 3584 --ops score --seconds 0.7
  if [ -n "$built" ] && [ "$transformers" = True ]; then
    step prefill 60 bash -c 'prefill "$@"' prefill --llm 7b --tokens 6272 --rounds 3
  fi
  if [ -n "$built" ]; then
    step examples 40 bash -c 'run_tests "$@"' run_tests tests/test_docs.py \
      -k 'test_examples_run and using-the-ops'
  fi
  reserve=25 # for the pictures
  sweep=()
  [ -n "$built" ] || sweep=(--ops score)
  measure sweep "$(left)" --missing --without-compile --seconds 0.3 "${sweep[@]}"
else
  [ -z "$built" ] || step parity 60 bash -c parity
  reserve=0
  measure headline "$(left)" --quick --tokens 784 --hidden 64 --seconds 0.02 \
    --ops score select_tokens ocss_sample
  if [ "$transformers" = True ]; then
    step prefill 60 bash -c 'prefill "$@"' prefill --llm tiny --tokens 784 --rounds 1
  fi
fi
reserve=0
[ "$matplotlib" != True ] || [ ! -f "$csv" ] || step pictures 25 bash -c draw
if [ -n "$(find "$work/plots" -name '*.png' -print -quit)" ]; then
  if [ "$out" = bench/results ]; then
    mkdir -p "$out/$name" && cp "$work"/plots/*.png "$out/$name/"
  else # one file: what comes back from a lent machine is a handful
    tar -czf "$out/$name-plots.tar.gz" -C "$work" plots
  fi
fi
[ -f "$csv" ] && say "$(($(wc -l <"$csv") - 1)) figures in $csv"

for what in "${failed[@]}"; do say "FAILED $what"; done | tee -a "$log"
[ ${#failed[@]} -eq 0 ] && say "done"
[ ${#failed[@]} -eq 0 ]
