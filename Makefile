# On a machine with git, make and Python 3.11: `make demo` runs the main job, `make test` the tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
RUNTIMES := .venv-runtimes
EXTRAS := --extra litert --extra openvino --extra torch --extra tvm

# uv's name for what pip calls PIP_FIND_LINKS: a folder or page of wheels, such as PyTorch's for CPUs.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help install demo test chaos fuzz nightly runtimes check format docs lock clean

help:
	@echo "make demo     install, then: demo data, a sweep, its Pareto front, a verified bundle"
	@echo "make test     install, then run all tests"
	@echo "make runtimes install all runtimes into .venv-runtimes, then test them, see docs/runtimes.md"
	@echo "make chaos    kill 60 processes of a cluster at random, and see that nothing is lost; 15 minutes"
	@echo "make fuzz     fuzz all that reads other people's files, 15 minutes each, two at a time"
	@echo "make nightly  fuzz and chaos"
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

chaos: install
	SWEEPS_CHAOS_KILLS=60 SWEEPS_CHAOS_SEED=$$$$ $(BIN)/pytest tests/e2e/test_chaos.py -s

fuzz: install
	$(BIN)/python -m tests.fuzz --seconds 900

nightly: fuzz chaos

runtimes: $(RUNTIMES)/.installed $(if $(DEEPSPARSE),.venv-deepsparse/.installed)
	$(if $(DEEPSPARSE),SWEEPS_DEEPSPARSE=.venv-deepsparse/bin/python) \
	  $(RUNTIMES)/bin/pytest tests/thesis/runtimes tests/thesis/test_quantise.py

$(RUNTIMES)/.installed: requirements-runtimes.lock pyproject.toml | install
	$(PYTHON) -m venv $(RUNTIMES)
	$(BIN)/uv pip install --python $(RUNTIMES)/bin/python --quiet --no-deps -r requirements-runtimes.lock
	$(BIN)/uv pip install --python $(RUNTIMES)/bin/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Without this project's overrides: DeepSparse computes nonsense with NumPy 2, and does not say so.
.venv-deepsparse/.installed: requirements-deepsparse.lock | install
	$(PYTHON) -m venv .venv-deepsparse
	$(BIN)/uv pip install --no-config --python .venv-deepsparse/bin/python --quiet --no-deps -r requirements-deepsparse.lock
	@touch $@

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
	# With PyTorch's wheel for CPUs at hand (PIP_FIND_LINKS), else that of CUDA and all it needs.
	$(BIN)/uv pip compile pyproject.toml --group dev $(EXTRAS) --python-version 3.11 --quiet \
	  --constraint requirements.lock --no-annotate --no-header --output-file requirements-runtimes.lock
	sed -i 's/+cpu$$//' requirements-runtimes.lock
	printf "deepsparse==1.8.0\nnumpy<2\n" | $(BIN)/uv pip compile --no-config - --python-version 3.11 --quiet \
	  --no-annotate --no-header --output-file requirements-deepsparse.lock

clean:
	rm -rf .venv $(RUNTIMES) .venv-deepsparse build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
