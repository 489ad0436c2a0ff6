# Needs Python 3.11 or newer with pip, and make. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Of checkov, whose hundred dependencies have no place among ours.
SCANNER ?= $(HOME)/.cache/budget-hub/checkov

.PHONY: help install run test test-firebase faults examples check bench lint format types imports \
	lock scan-infra clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

install: .venv/installed  ## build .venv from the hashed lock

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@echo "installing into .venv; half a minute, or some with a slow network …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: install  ## serve on 127.0.0.1:8000 with an embedded Postgres and Redis
	@$(BIN)/budget-hub dev

test: install  ## the whole test suite, on real embedded services
	$(BIN)/pytest

test-firebase: install .firebase-tools/installed  ## the identity tests on Firebase's own emulator
	$(BIN)/pytest -m firebase

# Needs Node.js 20 or newer with npm; some 600 packages, five minutes.
.firebase-tools/installed: Makefile
	npm install --prefix .firebase-tools --no-save --no-audit --no-fund --loglevel error \
		firebase-tools@15
	@touch $@

faults: install  ## the fault tests at length, and 200 seeded fault runs (40 minutes in all)
	$(BIN)/pytest -m faults --timeout 1800 --log-cli-level INFO
	$(BIN)/python -m loadtest faults --runs 200 --record

examples: install  ## take down the examples of the interface's documents from a real hub
	RENEW_EXAMPLES=1 $(BIN)/pytest tests/acceptance/test_interface.py -k committed

check: lint types imports test  ## everything CI runs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! command -v terraform >/dev/null || terraform fmt -check -recursive infra/terraform

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports --no-cache

format: install  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## renew requirements.lock after a change of dependencies (needs uv)
	uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
		--all-extras --group dev pyproject.toml -o requirements.lock

bench: install  ## measure, and write loadtest/RESULTS.md (half an hour, on a quiet machine)
	$(BIN)/python -m loadtest.bench --record

scan-infra: $(SCANNER)/bin/checkov  ## look for unsafe settings in infra/terraform
	$< --directory infra/terraform --framework terraform --compact --quiet --skip-download

$(SCANNER)/bin/checkov:
	$(PYTHON) -m venv $(SCANNER)
	$(SCANNER)/bin/pip install --quiet "checkov>=3.3,<4"

clean:  ## remove .venv and caches; data in .data/ stays
	rm -rf .venv .firebase-tools .mypy_cache .pytest_cache .ruff_cache .hypothesis
