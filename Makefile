# Each target does its own set-up: Python 3.11 or newer is all that must be there.
.DEFAULT_GOAL := help

# The first of these that is new enough; another: make PYTHON=/path/to/python test
PYTHON ?= $(shell for p in python3.11 python3 python python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# Passed on: make test ARGS="-k ledger -x"
ARGS ?=
# Tests side by side, each with a Kafka of its own: most of their time is waiting. WORKERS=0: one after the other.
WORKERS ?= 2
# Of make soak.
MINUTES ?= 60
KILL_EVERY_S ?= 30

.PHONY: demo test check bench matrix soak docs clean distclean help

demo: .venv/.ready-run ## Show the whole loop at work on real data, in about a minute
	$(BIN)/pipeline demo $(ARGS)

test: .venv/.ready-dev ## Run all tests on a real Kafka; coverage must reach 90 %
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(ARGS)

check: .venv/.ready-dev ## Lint, format, strict types, import law
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_law.py

bench: .venv/.ready-dev ## Measure throughput beside a raw echo, a hand-written loop, plain Faust and other stream processors
	$(BIN)/python -m benchmarks.run $(ARGS)

matrix: .venv/.ready-dev ## Attack everything and write what was found into docs/matrix.md
	rm -f docs/matrix.json
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m case --matrix docs/matrix.json $(ARGS)
	$(BIN)/python -m tests.matrix

soak: .venv/.ready-dev ## An hour of load with a kill every 30 s; MINUTES=10 KILL_EVERY_S=30
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --kill-every-s $(KILL_EVERY_S) --out docs $(ARGS)

docs: .venv/.ready-docs ## Build the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

clean: ## Remove what tests, checks and builds left behind
	rm -rf build dist site htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## The same, and the virtual environment
	rm -rf .venv *.egg-info

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# pip is what `venv` installs last: a set-up that was interrupted begins again.
$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv || { echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# Stamps: installed once, and again when pyproject.toml or what is compiled has changed.
.venv/.ready-run: EXTRAS := broker
.venv/.ready-dev: EXTRAS := broker,test,check
.venv/.ready-docs: EXTRAS := docs
.venv/.ready-%: pyproject.toml $(wildcard pipeline/bus/*.c) | $(BIN)/pip
	$(PIP) -e ".[$(EXTRAS)]"
	@touch $@
