# Everything runs in .venv; nothing is installed outside this folder but the model in the user's cache folder.
PYTHON ?= python3
BIN := .venv/bin
# Test processes, each with a database server of its own; the tests of one file stay together. Four on two cores: many tests wait.
WORKERS ?= 4
# Where Python is told to keep nothing compiled, each of the thousand processes of the tests would compile all of our code anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run test dev check format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

run: .venv/installed ## Set up, bring the sample books into the knowledge base, and ask it three questions
	$(BIN)/era demo

test: .venv/installed check ## Set up and run all checks and tests
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

dev: .venv/installed ## The Dagster UI on http://127.0.0.1:3000, sensor included
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dagster dev --host 127.0.0.1 --port 3000

check: .venv/installed ## The fast gates: style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/installed ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed ## Time 2,000 generated chapters against an instant embedding server
	$(BIN)/python -m era_dagster_tests.benchmarks.ingest

clean: ## Remove the environment and caches; data and the knowledge base stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
