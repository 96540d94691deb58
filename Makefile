# `make demo` and `make test` set up everything they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-all lint clean

KERNELS := $(wildcard src/denseloss/primitives/cpu/*.[ch])

setup: $(VENV)/.ready $(VENV)/.kernels

# Made again when pyproject.toml changes. The install is editable: changes in Python need no new setup.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("denseloss needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

# Compiled again when a C source changes. Where there is no C compiler, it says so and goes on.
$(VENV)/.kernels: setup.py $(KERNELS) | $(VENV)/.ready
	$(BIN)/python setup.py --quiet build_kernels --editable-mode --strict
	touch $@

# Compares three losses on the built-in synthetic images and says where the report is.
demo: setup
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Two processes with one thread each use two cores best: the tensors in the tests are small.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow' $(PYTEST_ARGS)

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist runs *.egg-info src/*.egg-info src/denseloss/primitives/cpu/*.so
