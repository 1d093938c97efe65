#!/bin/sh
# Runs tests/engines beside the engines' own packages, without a GPU and without CUDA packages.
#
#   tests/engines/run_engines.sh              # what follows goes to pytest
#
# They go to .venv-engines/ once (git ignores it), in an environment that reads the packages of the
# project's own for everything else (torch among them); PYTHON chooses the project's interpreter.
# vLLM's tests have a process of their own: vLLM is told there that its device is a CPU.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
folder=.venv-engines

fresh() {
    [ -f "$folder/.installed" ] || return 1
    for list in tests/engines/requirements-*.txt; do
        [ "$folder/.installed" -nt "$list" ] || return 1
    done
}

if ! fresh; then
    rm -rf "$folder"
    $python -m venv "$folder"
    echo '*' > "$folder/.gitignore"
    ours=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    theirs=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # A path file, not a copy: what the engines bring stands before it.
    echo "$ours" > "$theirs/zz_project.pth"
    for list in tests/engines/requirements-*.txt; do
        "$folder/bin/python" -m pip install --quiet --no-deps --prefer-binary -r "$list"
    done
    touch "$folder/.installed"
fi

status=0
run() {
    "$folder/bin/python" -m pytest -q -p no:cacheprovider "$@" || {
        code=$?
        [ $code -eq 5 ] || status=$code # 5: a filter left nothing of this part
    }
}
run tests/engines --ignore=tests/engines/test_vllm_plugin.py "$@"
export VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-ERROR}"
# Its first vision tower takes a minute of one busy core.
run --timeout 1800 tests/engines/test_vllm_plugin.py "$@"
exit $status
