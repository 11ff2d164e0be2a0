# make demo, make test, make lint, make bench, make guard: each sets up the environment first, once.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# Another torch than the constraints', with the Triton that goes with it: make env TORCH=torch==2.11.0
# (Older Tritons' interpreters fail with NumPy 2.4 and newer.)
TORCH ?=
DEMO_OUT ?= demo
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CXX_FILES := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
SOURCES := $(shell find csrc scp_kernels models -type f ! -path '*__pycache__*' ! -name '*.so' ! -name build.json)
# Two test processes of one thread each beat one of two; in one process torch's threads would wait for each other. The
# guard's ratios too are steadier where no thread waits for another on a busy machine.
ONE_THREAD := OMP_NUM_THREADS=1

GUARD := $(ONE_THREAD) $(BIN)/pytest benchmarks --benchmark-only -q --short --device cpu --record build/guard

.PHONY: help env demo test lint types format bench guard floors build clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F: '{printf "  make %-8s%s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Dependencies once. They come with the package itself, which is compiled in the next step, not here too.
$(VENV)/.dependencies: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing the dependencies into $(VENV): some minutes the first time"
	@{ grep -v '$(if $(TORCH),^torch==\|^triton[=>]\|^numpy==,^$$)' $(CONSTRAINTS); $(if $(TORCH),printf '%s\n' '$(TORCH)' 'numpy<2.4';) } > $(VENV)/constraints.txt
	SCP_BUILD_CPU=0 SCP_BUILD_CUDA=0 $(BIN)/python -m pip install -c $(VENV)/constraints.txt ".[train,test,dev,nnunet]"
	@# nnU-Net brings torchvision, and does not need it. Built for another torch, it breaks torchmetrics and Lightning.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall --yes torchvision
	@touch $@

# A plain install, not an editable one: tests and demo run what `pip install .` gives a user, packaged data included.
# Again whenever a source changes; objects stay in build/, so only what changed is compiled.
$(STAMP): $(VENV)/.dependencies setup.py MANIFEST.in $(SOURCES)
	@echo "Building and installing scp_kernels"
	@if [ "$$SCP_BUILD_CUDA" != 0 ] && command -v nvcc > /dev/null; then \
		echo "nvcc compiles the CUDA kernels: some minutes the first time; SCP_BUILD_CUDA=0 leaves them out"; fi
	@$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	@touch $@

env: $(STAMP)  ## the environment in $(VENV), with everything installed
	@$(BIN)/python -m scp_kernels

demo: $(STAMP)  ## train and evaluate SCP and its comparisons on phantoms; prints the report's path
	$(BIN)/scp-models demo --out $(DEMO_OUT)

# `pytest`, not `python -m pytest`, which would put the checkout before the installed packages.
test: $(STAMP)  ## the test suite
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.dependencies types  ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

types: $(VENV)/.dependencies
	$(BIN)/mypy
	$(BIN)/mypy setup.py

format: $(VENV)/.dependencies  ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(STAMP)  ## the benchmarks and their verdict; BENCH_ARGS="--slow --record benchmarks/results"
	$(BIN)/pytest benchmarks --benchmark-only $(BENCH_ARGS)

guard: $(STAMP)  ## fail if the operator has become slower beside its peers (a minute)
	@rm -rf build/guard
	$(GUARD) --budget 1
	$(BIN)/python -m benchmarks.guard build/guard/*.json || { rm -rf build/guard && $(GUARD) --budget 4 && \
		$(BIN)/python -m benchmarks.guard build/guard/*.json; }  # the same floors, by longer races

floors: $(STAMP)  ## raise the guard's floors after a gain, on an idle machine
	@rm -rf build/guard
	$(GUARD) --budget 4
	$(BIN)/python -m benchmarks.guard --write build/guard/*.json

build: $(VENV)/.dependencies  ## compile what changed in csrc/ and install, with the compiler's messages
	$(BIN)/python -m pip install --verbose --no-build-isolation --no-deps --force-reinstall .
	@touch $(STAMP)

clean:  ## everything but the environment
	rm -rf build dist demo .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks *.egg-info csrc/scp_kernels_native/*.so csrc/scp_kernels_native/build.json
