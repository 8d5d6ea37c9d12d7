# make demo: fit, score and sample a density on real data, in a few minutes
# make test: all tests but the long ones, in a few minutes
# make test-slow: the long ones
# make test-oldest: the suite with the oldest versions that are declared
# make lint: style, types, the direction of imports, words
# make bench: speed relative to the network-only baseline and to other libraries, into docs/results (about half an hour)
# make docs: the documentation; every code block of it runs, warnings are errors
# Each target makes .venv from nothing and installs what it needs.

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2

.PHONY: demo test test-slow test-oldest lint bench docs clean

demo: .venv/.core
	.venv/bin/flowkit demo --output demo

test: .venv/.test
	.venv/bin/python -m pytest -n $(JOBS) -m "not slow"

test-slow: .venv/.test
	.venv/bin/python -m pytest -n $(JOBS) -m slow

# The oldest versions that pyproject.toml declares, of everything but torch and Python unless
# TORCH and PYTHON say so. Newer packages below them warn, which is no failure here.
TORCH ?= torch==2.13.0
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-oldest/constraints.txt -e ".[test]"
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps skfolio
	.venv-oldest/bin/python -m pytest -n $(JOBS) -o filterwarnings=default --disable-warnings

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python tests/vocabulary.py

# The program starts itself again under the allocator's settings; see its --allocator.
bench: .venv/.bench
	PYTHONPATH=tests .venv/bin/python -m benchmarks --output docs/results $(BENCH)

docs: .venv/.dev
	.venv/bin/python docs/run_snippets.py
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf .venv .venv-oldest demo docs/_build

# Of skfolio only a table is read, so it comes without what it needs.
# torch first and by itself, at the tested version: later installs then find it satisfied.
.venv/.core: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/.test: .venv/.core
	$(PIP) -e ".[test]"
	$(PIP) --no-deps skfolio
	touch $@

.venv/.bench: .venv/.test
	$(PIP) -e ".[bench]"
	touch $@

.venv/.dev: .venv/.test
	$(PIP) -e ".[dev]"
	touch $@
