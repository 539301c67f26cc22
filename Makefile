# Two commands for a newcomer (train, test) and one for a contributor (check).
# They need Python 3.11 or newer with pip: `python3`, or another named by PYTHON=...

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: train test lint check clean

# The main job, on the bundled digits: no network, a few minutes.
train: $(VENV)/installed
	$(BIN)/spikezoo train gen:snn_middle disc:snn

# The whole test suite.
test: $(VENV)/installed-dev
	$(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What a contributor runs: format, lint, types, import layers, tests.
check: lint test

clean:
	rm -rf $(VENV) build *.egg-info spikezoo/backends/*.so

# Installed anew when one of these changes.
SOURCES = pyproject.toml setup.py spikezoo/backends/_lif.c

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test,check]'
	touch $@
