#!/bin/sh
# Runs tests/models against several releases of transformers, each beside the environment's torch.
#
#   tests/models/run_versions.sh                # 5.4, 5.17, 5.18 and the installed one
#   tests/models/run_versions.sh 5.10 -k attach # one release; the rest goes to pytest
#
# Releases go to .venv-compat/ once (git ignores it) and come first on PYTHONPATH; PYTHON chooses
# the interpreter of the environment with torch and pytest.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}

case "${1:-}" in
    [0-9]*) releases=$1; shift ;;
    *) releases="5.4 5.17 5.18 installed" ;;
esac

install() {
    # Its own pins only for what it pins closely; everything else is the environment's.
    $python -m pip install --quiet --no-deps --target "$2.part" "transformers~=$1.0"
    needed=$(PYTHONPATH="$2.part" $python -c '
from importlib.metadata import distribution
from packaging.requirements import Requirement
for line in distribution("transformers").requires:
    need = Requirement(line)
    if need.name in ("huggingface-hub", "tokenizers") and not need.marker:
        print(f"{need.name}{need.specifier}")
')
    rm -rf "$2.part/bin"
    # The last three: releases of the hub's client differ in what they download with.
    $python -m pip install --quiet --no-deps --target "$2.part" $needed httpx httpcore certifi
    mv "$2.part" "$2"
}

mkdir -p .venv-compat
echo '*' > .venv-compat/.gitignore
status=0
for release in $releases; do
    folder=.venv-compat/$release
    if [ "$release" = installed ]; then
        folder=
    elif [ ! -d "$folder" ]; then
        rm -rf "$folder.part"
        install "$release" "$folder"
    fi
    PYTHONPATH=$folder $python -c 'import transformers; print("transformers", transformers.__version__)'
    PYTHONPATH=$folder $python -m pytest -q -p no:cacheprovider tests/models "$@" || status=1
done
exit $status
