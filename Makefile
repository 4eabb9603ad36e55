# Needs Python >= 3.11 with venv, and make. Everything else is brought here: .tools (uv), .venv (the product).
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
# uv must take the interpreter it is given and never fetch one of its own.
export UV_PYTHON_DOWNLOADS := never
# Each test process would compile all tests anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --compile-bytecode
STAMPS := $(VENV)/.stamps
VENDOR := src/pharos/web/static/vendor/lock.sha256
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url

# `make test T=tests/library` runs a part without parallel processes; ARGS reaches pytest or pharos.
T ?=
ARGS ?=
JOBS ?= 3
TARGET = $(if $(T),$(T) -p no:randomly,-n $(JOBS) --dist loadgroup)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMPS)/models $(STAMPS)/bytecode $(VENDOR) ## Install everything Pharos needs into .venv and prepare its models

.PHONY: up
up: setup ## Install what is missing, then start Pharos in this terminal (Ctrl-C stops it)
	@exec $(BIN)/pharos up $(ARGS)

.PHONY: test
test: setup $(STAMPS)/dev ## Run all tests but the long proofs; T=path for a part
	@$(BIN)/python -m pytest $(TARGET) -m "not prove" --durations=10 $(ARGS)

.PHONY: test-fast
# A third process would read all tests too, for few of them.
test-fast: JOBS = 2
test-fast: setup $(STAMPS)/dev ## Run the tests that answer within a minute
	@$(BIN)/python -m pytest $(TARGET) -m "not prove and not slow and not browser" --fast $(ARGS)

.PHONY: prove
prove: setup $(STAMPS)/dev ## Run the long proofs: kills, soaks, drills
	@$(BIN)/python -m pytest $(or $(T),tests) -m prove $(ARGS)

.PHONY: check
check: $(STAMPS)/dev ## Lint, format, types, import contracts, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --explicit-package-bases src/pharos tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -p no:randomly tests/test_architecture.py

.PHONY: contract
contract: $(STAMPS)/dev ## Show which rows of docs/contract.md are proved by the last `make test`
	@$(BIN)/python -m tests.contract

.PHONY: bench
bench: setup $(STAMPS)/dev ## Measure against the bounds: make bench EVAL_DIR=folder-of-sets
	@test -n "$(EVAL_DIR)" || { echo "Say where the evaluation sets lie: make bench EVAL_DIR=/path"; exit 2; }
	@$(BIN)/python -m benchmarks.run "$(EVAL_DIR)" $(ARGS)

.PHONY: lock
lock: $(UV) ## Resolve the dependencies anew and write both lock files
	$(LOCK) pyproject.toml --group models -o requirements.lock
	$(LOCK) pyproject.toml --group models --group dev -c requirements.lock -o requirements-dev.lock

.PHONY: clean
clean: ## Remove what was installed and built; data directories stay
	rm -rf $(VENV) .tools build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache node_modules $(dir $(VENDOR))

# ---- How it gets there. A stamp is newer than what it was made from, so a second `make up` only starts. ----

.tools/bin/uv:
	@echo "Bringing uv into .tools"
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv

$(STAMPS)/venv: | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pharos needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 up"; exit 2; }
	@test -x $(BIN)/python || { echo "Creating $(VENV)"; $(UV) venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/parts: requirements.lock $(STAMPS)/venv
	@echo "Installing the parts named in requirements.lock"
	@$(INSTALL) --require-hashes -r requirements.lock
	@touch $@

$(STAMPS)/project: pyproject.toml $(STAMPS)/parts
	@$(INSTALL) --no-deps -e .
	@touch $@

# A start must not compile: it would cost seconds each time where Python may not write beside the sources.
$(STAMPS)/bytecode: $(shell find src -name '*.py') $(STAMPS)/project
	@$(BIN)/python -m compileall -q src
	@touch $@

$(STAMPS)/dev: requirements-dev.lock $(STAMPS)/project
	@echo "Installing the tools named in requirements-dev.lock"
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

# With the handbook's pages, whose vectors are computed here and not at each first start.
$(STAMPS)/models: $(wildcard src/pharos/providers/embedder/build*.py src/pharos/providers/embedder/*.json src/pharos/providers/embedder/*.lock docs/guide/*.md docs/runbook/*.md) $(STAMPS)/project
	@$(BIN)/pharos models prepare
	@touch $@

# The script takes npm from PATH or, where no Node is, from a wheel through uv.
$(VENDOR): package-lock.json scripts/build_assets.py | $(STAMPS)/venv
	@echo "Building the web assets"
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python scripts/build_assets.py
	@touch $@
