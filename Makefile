# make demo, make test, make lint, make bench: each sets up the environment first, once.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
DEMO_OUT ?= demo
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc scp_kernels models -type f ! -path '*__pycache__*' ! -name '*.so' ! -name build.json)
# Two test processes of one thread each beat one of two; in one process torch's threads would wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: help env demo test lint format bench build clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F: '{printf "  make %-8s%s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Dependencies once, the package again whenever a source changes: the tests see what a user gets from `pip install .`.
$(VENV)/.dependencies: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --progress-bar on -c $(CONSTRAINTS) ".[train,test,dev]"
	@touch $@

$(STAMP): $(VENV)/.dependencies setup.py $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	@touch $@

env: $(STAMP)  ## the environment in $(VENV), with everything installed
	@$(BIN)/python -m scp_kernels

demo: $(STAMP)  ## train and evaluate SCP and its comparisons on phantoms; prints the report's path
	$(BIN)/scp-models demo --out $(DEMO_OUT)

test: $(STAMP)  ## the test suite
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/.dependencies  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy scp_kernels models

format: $(VENV)/.dependencies  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the benchmarks, each beside its peers
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=min,median,iqr,rounds

build: $(VENV)/.dependencies  ## compile csrc/ again, incrementally, and install
	$(BIN)/python -m pip install --no-build-isolation --no-deps --force-reinstall .

clean:  ## everything but the environment
	rm -rf build dist demo .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks *.egg-info csrc/*.so csrc/build.json
