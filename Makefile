# The first of these that the pins are made for and that can make environments; PYTHON=... names another.
PYTHONS = python3.11 python3.12 python3.13 python3.14 python3 python
FITS = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for name in $(PYTHONS); do "$$name" -c '$(FITS)' 2>/dev/null && echo "$$name" && break; done)
BIN = .venv/bin

.PHONY: help env demo test test-flower lint docs dist bench lock check-lock check-fresh clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1  \t/p' Makefile

env: .venv/ready  ## create .venv from the pinned constraints

.venv/ready: pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error no Python 3.11 to 3.14 with venv: tried $(PYTHONS); install one or name it: make env PYTHON=/path/to/python))
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: env  ## how many bytes until a network reads digits? FedAvg and three scalar-only methods, a minute
	$(BIN)/scalarfl demo

test: env lint  ## lint, check types, run all tests
	$(BIN)/pytest -n 2 --dist worksteal

lint: env  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

test-flower: env  ## Flower's simulation, and its SuperLink with SuperNodes that are killed; about 6 minutes
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[flower-simulation]'
	$(BIN)/pytest -m flower -s

docs: env  ## build the documentation site into site/; any warning is an error
	rm -rf site
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --quiet --conf-dir docs --doctree-dir build/doctrees . site

dist: env  ## build the source distribution and the wheel, check them, install the wheel elsewhere and run its demo
	rm -rf dist build/lib
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	folder=$$(mktemp -d) && $(BIN)/python -m venv "$$folder" && \
	"$$folder/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl && \
	cd "$$folder" && bin/scalarfl demo --rounds 20 && rm -rf "$$folder"

bench: env  ## measure speed and memory, about 15 minutes, and rewrite the table in docs/performance.md
	$(BIN)/scalarfl bench --out benchmarks/results/bench.json; $(BIN)/python -m benchmarks.table

lock: env  ## pin again what constraints.txt pins; with UPGRADE=1 the newest versions
	$(BIN)/python tests/lock.py $(if $(UPGRADE),--upgrade)

check-lock: env  ## resolve the pins for every Python and platform, by the public index alone; about 3 minutes
	$(BIN)/pytest -n 2 -m registry

check-fresh:  ## clone into an empty folder with an empty home, install there from the public index, run demo and tests
	folder=$$(mktemp -d) && git clone --quiet . "$$folder/scalarfl" && cd "$$folder/scalarfl" && \
	env -u PIP_FIND_LINKS -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL -u PIP_CONSTRAINT -u PYTHONPATH \
		HOME="$$folder" PIP_CONFIG_FILE=/dev/null $(MAKE) demo test && rm -rf "$$folder"

clean:  ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist site
