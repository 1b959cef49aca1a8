# `make smoke` proves the tool on this machine; `make test` runs the whole suite.
# Both make what they need: an environment in $(VENV), shared. Use your own with PYTHON=... VENV=...

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: smoke test lint clean

smoke: $(VENV)/.train
	$(BIN)/vltool smoke

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vltool needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# Editable, so that smoke and test run the sources that lie here.
$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
