# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# PYTHON: any CPython 3.10-3.12. VENV: where the environment goes.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
OUT    ?= out

.PHONY: setup demo test lint bench clean
setup: $(STAMP)

# torch first: without a GPU its CPU build is enough and gigabytes smaller (see the README for how it is chosen)
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12), "mm2c needs Python 3.10-3.12; run make PYTHON=python3.11"'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "torch~=2.13.0"
	$(BIN)/python -m pip install --quiet -e ".[cpu,serve,dev]"
	@touch $(STAMP)

demo: setup
	$(BIN)/python tests/demo.py --bundle $(OUT)/tiny-m2-tp4

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py

bench: setup
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(OUT) build dist *.egg-info .mypy_path .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
