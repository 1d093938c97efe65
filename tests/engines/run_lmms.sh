#!/bin/sh
# Runs lmms-eval with the model `cacovid` on a small task of generated videos.
#
#   tests/engines/run_lmms.sh                 # what follows goes to pytest
#
# lmms-eval and what it imports go to .venv-lmms/ once (git ignores it), in front of the packages of
# the environment, whose torch and transformers serve; the package is installed there too, for its
# entry point. PYTHON chooses the interpreter of the environment with torch and pytest.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
folder=.venv-lmms

if [ ! -f "$folder/.installed" ]; then
    rm -rf "$folder"
    $python -m venv "$folder"
    echo '*' > "$folder/.gitignore"
    environment=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    inner=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$environment" > "$inner/environment.pth"
    # Without its requirements: it asks for dozens of packages for other models, and for torchvision.
    "$folder/bin/python" -m pip install --quiet --no-deps "lmms-eval>=0.7,<0.8"
    "$folder/bin/python" -m pip install --quiet datasets evaluate jsonlines numexpr pytablewriter \
        sacrebleu tqdm-multiprocess zstandard loguru tenacity einops httpx openai python-dotenv \
        scikit-learn openpyxl "av<16" sentencepiece ftfy tiktoken peft opencv-python-headless
    CACOVID_SKIP_NATIVE=1 "$folder/bin/python" -m pip install --quiet --no-deps \
        --no-build-isolation -e .
    touch "$folder/.installed"
fi
"$folder/bin/python" -c 'import lmms_eval, importlib.metadata as m; print("lmms-eval", m.version("lmms-eval"))'
exec "$folder/bin/python" -m pytest -q -rs -p no:cacheprovider tests/engines "$@"
