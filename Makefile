# `make demo` and `make test` each build what they need (a .venv) on first use; a second run skips the set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(abspath $(VENV))/bin
DATA   ?=
DEMO   ?= demo
export PATH := $(BIN):$(PATH)

.PHONY: demo test unit lint setup format clean

setup: $(VENV)/.ready

# DeepSpeed is a source package that looks at the installed torch while it builds, hence the order and --no-build-isolation.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), mpp needs Python 3.11 to 3.13; try: make PYTHON=python3.12 ..."; exit 2; }
	@command -v g++ >/dev/null || command -v c++ >/dev/null || \
	  { echo "error: no C++ compiler found; DeepSpeed needs one for its CPU collectives: apt-get install g++ (or your system's)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch torchvision setuptools wheel ninja py-cpuinfo
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

test: setup lint unit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	$(BIN)/python -m pytest

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .import_linter_cache
