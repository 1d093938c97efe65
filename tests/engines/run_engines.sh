#!/bin/sh
# Runs tests/engines beside the engines' own packages, without a GPU and without CUDA packages.
#
# They go to .venv-engines/ once (git ignores it), in an environment that reads the packages of the
# project's own for everything else (torch among them); PYTHON chooses the project's interpreter.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
folder=.venv-engines

if [ ! -f "$folder/.installed" ] || [ tests/engines/requirements-sglang.txt -nt "$folder/.installed" ]
then
    rm -rf "$folder"
    $python -m venv "$folder"
    echo '*' > "$folder/.gitignore"
    ours=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    theirs=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # A path file, not a copy: what the engines bring stands before it.
    echo "$ours" > "$theirs/zz_project.pth"
    "$folder/bin/python" -m pip install --quiet --no-deps --prefer-binary \
        -r tests/engines/requirements-sglang.txt
    touch "$folder/.installed"
fi
exec "$folder/bin/python" -m pytest -q -p no:cacheprovider tests/engines "$@"
