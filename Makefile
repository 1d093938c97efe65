TORCH_SPEC ?= torch==2.13.0
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup test lint

$(VENV)/.stamp: Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH_SPEC)"
	$(BIN)/pip install -q numpy safetensors huggingface_hub pytest hypothesis ruff
	touch $@

setup: $(VENV)/.stamp

lint: setup
	$(BIN)/ruff check cacovid tests

test: lint
	$(BIN)/python -m pytest -q tests
