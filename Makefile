# make demo | test | setup | lint | build | sanitize | test-transformers | test-lmms | test-engines
#      | clean
#
# Everything runs in an environment of its own in .venv, made on first use. Variables:
#   PYTHON=python3.12             the interpreter that .venv is made with
#   TORCH_SPEC='torch==2.10.0'    another torch (options such as --index-url may follow)
#   PYTEST_ARGS='-k select'       more arguments for pytest
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf) say where packages come from.

PYTHON ?= python3
TORCH_SPEC ?= $(shell grep '^torch==' constraints.txt)
PYTEST_ARGS ?=
# Processes that run the tests, each of one thread; 0: all in one, which shows what they print.
PYTEST_WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
FORMATTED := $(NATIVE) $(wildcard tests/compile/*.cpp tests/compile/emulator/*)

.DELETE_ON_ERROR:
.PHONY: setup demo test lint build sanitize test-transformers test-lmms test-engines clean FORCE

setup: $(VENV)/.built

# Rewritten, and so newer than the environment, only when the wish has changed.
$(VENV)/.torch-spec: FORCE
	@mkdir -p $(VENV)
	@echo '$(TORCH_SPEC)' | cmp -s - $@ || echo '$(TORCH_SPEC)' > $@

$(VENV)/.installed: pyproject.toml constraints.txt .ci/setup $(VENV)/.torch-spec
	@PYTHON='$(PYTHON)' VENV='$(VENV)' TORCH_SPEC='$(TORCH_SPEC)' .ci/setup
	@touch $@ $(VENV)/.built

$(VENV)/.built: $(VENV)/.installed setup.py CMakeLists.txt $(NATIVE)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

demo: setup
	$(BIN)/cacovid demo

lint: setup
	$(BIN)/ruff check cacovid tests kernels bench setup.py
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

test: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	  $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# The C++ code under AddressSanitizer and UndefinedBehaviorSanitizer, built apart in build/.
sanitize: setup
	PYTHON=$(BIN)/python .ci/sanitize address undefined

# The adapters against the oldest, a middle and the newest release of transformers.
test-transformers: setup
	PATH="$(abspath $(BIN)):$$PATH" tests/models/run_versions.sh

# The model of lmms-eval, in a real run of it, which is installed beside the environment.
test-lmms: setup
	PATH="$(abspath $(BIN)):$$PATH" tests/engines/run_lmms.sh

# SGLang's and vLLM's parts against the installed engines' own code.
test-engines: setup
	PATH="$(abspath $(BIN)):$$PATH" tests/engines/run_engines.sh

# The wheel and the source distribution, in dist/.
build: setup
	$(BIN)/python -m build --no-isolation --outdir dist

clean:
	rm -rf build dist out *.egg-info cacovid/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f $(VENV)/.built
