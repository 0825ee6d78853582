PYTHON ?= python3.11
BIN = .venv/bin

.PHONY: help env demo test test-flower lint bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1  \t/p' Makefile

env: .venv/ready  ## create .venv from the pinned constraints

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: env  ## train on real digits with DeComFL and HiSo, compare, plot and verify
	$(BIN)/scalarfl demo

test: env lint  ## lint, check types, run all tests and the quick benchmarks
	$(BIN)/pytest -n 2
	$(BIN)/scalarfl bench --quick

lint: env  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

test-flower: env  ## Flower's simulation, and its SuperLink with SuperNodes that are killed; about 6 minutes
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'flwr[simulation]'
	$(BIN)/pytest -m flower -s

bench: env  ## measure speed and memory, about 15 minutes, and rewrite the table in docs/performance.md
	$(BIN)/scalarfl bench --out benchmarks/results/bench.json; $(BIN)/python -m benchmarks.table

clean:  ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
