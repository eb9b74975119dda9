# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check fix help clean-runs

help:
	@echo "make demo    train one small model with GRPO, GSPO and LUSPO (3 seeds), print the table, draw the figure"
	@echo "make test    the default test suite"
	@echo "make check   lint, format, types, import contracts, generated docs"
	@echo "make fix     format and mend what the linter can"

# torch first: its CPU build is taken where one is offered, and nothing after it changes the version.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "luspo needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/luspo compare --preset tiny --objectives grpo,gspo,luspo --seeds 3

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow and not gpu and not vllm and not verl'

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/command_help.py --check

fix: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tests/command_help.py --write
