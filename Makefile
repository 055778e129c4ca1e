# `make` lists the targets. Requires python3 (3.10 or later) and make; everything else is installed into .venv,
# and again only when pyproject.toml has changed.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test format lint types layers docs picture coverage reliability audit check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) $(DOCS) ## install everything for development into .venv

demo: $(DEMO) ## run the embedded example
	$(BIN)/finetune demo $(ARGS)

test: $(DEV) ## run the tests and every documented example, with coverage (ARGS="..." for pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov=finetune $(ARGS)

format: $(DEV) ## format the code and sort its imports
	$(BIN)/python -m ruff check --fix --select I .
	$(BIN)/python -m ruff format .

lint: $(DEV) ## check style, likely mistakes and the format (ruff)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(DEV) ## check static types (mypy, strict)
	$(BIN)/python -m mypy

layers: $(DEV) ## check that imports point only downward (import-linter)
	$(BIN)/lint-imports

docs: $(DOCS) ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

picture: $(DEV) ## redraw docs/layers.svg from the imports of the package
	$(BIN)/python docs/draw_layers.py

coverage: $(DEV) ## check a sample of every family of architectures (ARGS="--family timm" for all of one)
	$(BIN)/python -m benchmarks.coverage $(or $(ARGS),--sample)

audit: $(DEV) ## check the installed packages for known vulnerabilities, if their database can be reached (pip-audit)
	$(BIN)/python .ci/audit.py

reliability: $(DEV) ## kill, stop and damage a sample of runs (ARGS="--suite kills" for all of one)
	@rm -f $(VENV)/reliability.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability $(or $(ARGS),--sample --out $(VENV)/reliability.md)

check: lint types layers docs test coverage audit ## run everything that CI runs

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info docs/_build finetune-demo finetune-compare fuzz-* .coverage .coverage.* htmlcov \
		.pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find finetune tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "finetune requires Python 3.10 or later, but '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1 | head -n 1); choose another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu, install the package python3-venv" >&2; exit 1; }
	@touch $@

$(DEMO): $(MADE) pyproject.toml
	@echo "Installing finetune and PyTorch into $(VENV): a few minutes the first time, about 5 GB"
	$(INSTALL) '.[demo]'
	@touch $@

# The dev extra includes the demo's, so one install serves both.
$(DEV): $(MADE) pyproject.toml
	@echo "Installing finetune, PyTorch and the tools into $(VENV): a few minutes the first time, about 5 GB"
	$(INSTALL) '.[dev]'
	@touch $@ $(DEMO)

$(DOCS): $(MADE) pyproject.toml
	$(INSTALL) '.[docs]'
	@touch $@
