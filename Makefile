# On a machine with git, make and Python 3.11: `make demo` runs the main job, `make test` the tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install demo test check format docs lock clean

help:
	@echo "make demo     install, then: demo data, a sweep, its Pareto front, a verified bundle"
	@echo "make test     install, then run all tests"
	@echo "make check    lint, types, import directions"
	@echo "make format   reformat the code"
	@echo "make docs     write docs/cli.md and the table of models anew"
	@echo "make lock     resolve requirements.lock anew from pyproject.toml"

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^uv==' requirements.lock)"
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode --no-deps -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/sweeps demo

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python docs/make_cli_reference.py
	$(BIN)/python docs/make_model_table.py

lock: install
	$(BIN)/uv pip compile pyproject.toml --group dev --python-version 3.11 --quiet \
	  --no-annotate --no-header --output-file requirements.lock

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
