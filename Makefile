# Everything is set up and run from here. The environment in .venv is brought up to date when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIGITS := examples/digits
DEMO_OUT := runs/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast check format clean

demo: $(VENV)/.installed  ## train a small network on digits, adapt it for this machine, show the verdict
	$(BIN)/python $(DIGITS)/train.py
	$(BIN)/adapt $(DIGITS)/build/digits.onnx --target host --task $(DIGITS)/digits.toml --budget 110s --out $(DEMO_OUT) --fresh

test: $(VENV)/.installed-dev  ## every test
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed-dev  ## tests that start no server and no browser
	$(BIN)/python -m pytest -m "not rpc and not browser"

check: $(VENV)/.installed-dev  ## format, lint, types, dead code, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vulture --min-confidence 80 gos_adapt tvm_passes device_targets
	$(MAKE) test-fast

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build runs $(DIGITS)/build

# `torch` may be a build for GPUs, which is large and works as well: pip decides. The pins are in pyproject.toml.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), "Python 3.11 or 3.12 is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
