# `make demo` and `make test` work on a fresh clone: both create .venv and install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Processes of the test run; each computes with one thread.
WORKERS ?= 2

.PHONY: setup test lint format docs demo clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]'
	# on all cores, once; else every process compiles torch anew where Python may not write beside it
	# (some packages ship files of other Pythons' syntax, which are no errors here)
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: setup
	$(BIN)/fmwiss demo --out demo

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist site demo
