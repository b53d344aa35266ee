# Two commands on a fresh machine: `make demo` and `make test`. Both make the environment first, once.
#   make setup    the environment alone: .venv, with the pad-dist command in it
#   make test-fast    the tests without those that start Spark, a model, several ranks or a whole run
#   make lint     style, formatting, types and import contracts      make format    repair style
#   make clean    remove what was made here: .venv, runs, caches
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3.11
VENV ?= .venv
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?=

TORCH := $(shell grep '^torch==' requirements/common.txt)
PIP := $(VENV)/bin/python -m pip
RUN := PATH="$(abspath $(VENV))/bin:$$PATH"

# More threads than cores makes the ranks spin instead of working.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test test-fast lint format clean preflight

setup: $(VENV)/.ready

demo: setup
	$(RUN) pad-dist run --config configs/demo.yaml --out runs/demo

test: lint
	$(RUN) python -m pytest -n 2 --dist loadscope $(PYTEST_ARGS)

test-fast: setup
	$(RUN) python -m pytest -n 2 --dist loadscope -m "not slow" $(PYTEST_ARGS)

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

format: setup
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What pip cannot bring is checked first, every time, so that nothing starts that cannot end.
preflight:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo 'Python 3.11: "$(PYTHON)" is not one; install it: Debian or Ubuntu: apt-get install -y python3.11 python3.11-venv; Fedora or RHEL: dnf install -y python3.11; macOS: brew install python@3.11; or name yours: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -m pad_dist.runtime.doctor

# --no-deps: the lock is complete, and torchrec's own metadata would pull a CUDA fbgemm over the CPU one.
$(VENV)/.locked: $(wildcard requirements/*.txt) | preflight
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --no-deps --retries 0 --index-url $(TORCH_INDEX) $(TORCH) || { \
	  echo "$(TORCH_INDEX) did not serve $(TORCH): taking it from pip's default index"; \
	  $(PIP) install --no-deps $(TORCH); }
	$(PIP) install --no-deps -r requirements/cpu.txt
	@touch $@

$(VENV)/.ready: $(VENV)/.locked pyproject.toml | preflight
	$(PIP) install --no-deps --no-build-isolation -e .
	$(RUN) python -c 'import pyspark, torchrec, transformers'
	@touch $@
	@echo "Ready: $(VENV)/bin/pad-dist"
