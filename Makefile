# Targets: setup, demo, test, build, dev, lint, bench. Everything lives in .venv; nothing else is installed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test build dev lint bench clean

setup: .venv/.ready

# Re-made when the lock or the package changes. uv installs the exact versions and hashes of requirements.lock.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: name one with make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(BIN)/audience demo

test: setup
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

build: setup
	@$(BIN)/audience build

dev: setup
	@$(BIN)/audience dev

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/sqlfluff lint models --processes 2

bench: setup
	@$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv target logs
