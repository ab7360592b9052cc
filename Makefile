# kd-bench: `make demo` and `make test` are all the set-up there is; everything else is listed by `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KD := $(BIN)/kd-bench
# Where images are found and results go, e.g. `make demo OUT=/scratch/runs`.
OUT ?= runs
RUN_FLAGS ?=
# E.g. `make bench BENCH_FLAGS="--minutes 30"`.
BENCH_FLAGS ?=
# full, or smoke.
BUDGET ?= full

.PHONY: help setup demo test test-all lint format bench gpu-check reproduce-cifar reproduce-methods reproduce-imagenet reproduce-robustness report docs clean

help:  ## what one can make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1|/' | column -t -s '|'

$(STAMP): pyproject.toml constraints.txt
	@echo "setup: installing kd-bench and what it needs into $(VENV)"
	@echo "setup: torch is large; this takes some minutes, once"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "setup: kd-bench needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.12 setup"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## install into .venv
	@echo "setup: ready; try: make demo, or $(KD) --help"

demo: $(STAMP)  ## train a teacher and four methods on a small set of real images, and print the table
	@echo "demo: recipes/demo.yaml, five trials of each method on scikit-learn's digits"
	@echo "demo: results go to $(OUT)/demo"
	@$(KD) run recipes/demo.yaml --out $(OUT) $(RUN_FLAGS)

test: $(STAMP)  ## run the tests
	@echo "test: pytest on all cores"
	@$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(STAMP)  ## run all tests, those that take minutes too
	@echo "test-all: pytest on all cores, with the slow tests"
	@$(BIN)/python -m pytest -n auto --dist worksteal -m ""

lint: $(STAMP)  ## check style, types and who imports whom
	@echo "lint: ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## format the code
	@echo "format: ruff"
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(STAMP)  ## measure speed and memory, in about 14 minutes on two cores; writes results/benchmarks.md
	@echo "bench: a column of Table 6 against a published loop, its steps, its growth, losses, loader: see benchmarks/README.md"
	@echo "bench: ratios within a run are what counts; the page is results/benchmarks.md"
	@$(BIN)/python benchmarks/run.py $(BENCH_FLAGS)

gpu-check: $(STAMP)  ## check and measure kd-bench on a GPU, in 4 minutes on a large one; writes results/benchmarks_gpu.md
	@echo "gpu-check: the same bits with and without recorded steps, their speed, a whole epoch: see benchmarks/README.md"
	@$(BIN)/python benchmarks/gpu.py $(BENCH_FLAGS)

reproduce-cifar: $(STAMP)  ## reproduce the paper's Table 6; BUDGET=smoke runs all of it on a few images, in minutes
	@echo "reproduce-cifar: budget $(BUDGET), results go to $(OUT)$(if $(filter smoke,$(BUDGET)),/smoke); it resumes where it was stopped"
	@$(KD) reproduce cifar --budget $(BUDGET) --out $(OUT) $(RUN_FLAGS)

reproduce-methods: $(STAMP)  ## all methods on the 13 published pairs of CIFAR-100; BUDGET=smoke runs all of it on a few images, in minutes
	@echo "reproduce-methods: budget $(BUDGET), results go to $(OUT)$(if $(filter smoke,$(BUDGET)),/smoke)"
	@$(KD) reproduce methods --budget $(BUDGET) --out $(OUT) $(RUN_FLAGS)

reproduce-imagenet: $(STAMP)  ## reproduce the paper's Table 8; BUDGET=smoke runs all of it for a few steps, in minutes
	@echo "reproduce-imagenet: budget $(BUDGET), results go to $(OUT)$(if $(filter smoke,$(BUDGET)),/smoke); it resumes where it was stopped"
	@$(KD) reproduce imagenet --budget $(BUDGET) --out $(OUT) $(RUN_FLAGS)

reproduce-robustness: $(STAMP)  ## reproduce the paper's Tables 7 and 9 to 12; BUDGET=smoke runs all rows on a few images, in minutes
	@echo "reproduce-robustness: budget $(BUDGET), results go to $(OUT)$(if $(filter smoke,$(BUDGET)),/smoke); it resumes where it was stopped"
	@$(KD) reproduce robustness --budget $(BUDGET) --out $(OUT) $(RUN_FLAGS)

report: $(STAMP)  ## one HTML page of all results
	@echo "report: everything in $(OUT) as one page; another folder: make report OUT=results/measured"
	@$(KD) report --out $(OUT)

docs: $(STAMP)  ## build the documentation into site/
	@echo "docs: mkdocs-material, from docs/ into site/; docs/methods.md and docs/settings.md are written from the sources"
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove the environment, caches and build files, but no results
	rm -rf $(VENV) build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -exec rm -rf {} +
