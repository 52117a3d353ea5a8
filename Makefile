# One way to do each thing; CI calls the same targets. A machine with Python 3.11+, pip and make is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow parity goldens versions gpu lint format type smoke bench build clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install everything into it

# A torchvision that does not match torch breaks the import of torchmetrics and Lightning; nothing here needs one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch $(READY)

demo: setup ## harden a classifier of handwritten digits, minutes, no download
	$(BIN)/python -m amc_lightning +experiment=digits_amc

test: setup ## the default tests, minutes
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

slow: setup ## the tests that the default run leaves out
	$(BIN)/python -m pytest -m 'slow and not gpu'

parity: $(VENV)/.parity ## attacks against torchattacks, foolbox and ART, which it installs
	$(BIN)/python -m pytest -m parity tests/parity

$(VENV)/.parity: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch $@

goldens: setup ## write the resolved configurations anew; read the diff
	env -u AMC_DATA -u AMC_STORE $(BIN)/python -m tests.test_goldens

versions: setup ## take over changed sources of what is computed; NOTE="why nothing computed changes"
	$(BIN)/python -m tests.test_versions "$(NOTE)"

gpu: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: setup ## ruff, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## let ruff change the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup ## mypy
	$(BIN)/mypy

smoke: setup ## every stage once, seconds
	$(BIN)/python -m amc_lightning +experiment=smoke

bench: $(VENV)/.parity ## speed, as ratios, beside other libraries; hours
	$(BIN)/python -m benchmarks

build: setup ## wheel and sdist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

clean: ## remove what set-up and builds made
	rm -rf $(VENV) build dist *.egg-info
