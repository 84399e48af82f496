# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# PYTHON: any CPython 3.10-3.12. VENV: where the environment goes. KERNELS: where the one with the kernel compiler goes.
PYTHON  ?= python3
VENV    ?= .venv
KERNELS ?= .venv-kernels
BIN      = $(VENV)/bin
KBIN     = $(KERNELS)/bin
STAMP    = $(VENV)/.installed
KSTAMP   = $(KERNELS)/.installed
OUT     ?= out
# what the GPU's checks run with: a Python that has torch with CUDA and nothing else of ours
GPU_PYTHON ?= python3
PLUGIN_BUILD = plugins/build$(if $(DEBUG),-debug)
# tests of TensorRT's own interfaces look there for its bindings
export MM2C_KERNELS = $(abspath $(KERNELS))

.PHONY: setup plugins demo test gpu-files test-gpu lint bench clean
setup: $(STAMP)

# torch first: without a GPU its CPU build is enough and gigabytes smaller (see the README for how it is chosen)
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12), "mm2c needs Python 3.10-3.12; run make PYTHON=python3.11"'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "torch~=2.13.0"
	$(BIN)/python -m pip install --quiet -e ".[cpu,serve,rtx,verify,dev]"
	@touch $(STAMP)

# the kernel compiler's own packages, and behind them all of the main environment. --no-deps: of CUDA's compiler only
# ptxas is wanted, and the rest needs nothing.
$(KSTAMP): plugins/requirements-kernels.txt $(STAMP)
	@test -x $(KBIN)/python || $(BIN)/python -m venv $(KERNELS)
	$(KBIN)/python -m pip install --quiet --no-deps -r plugins/requirements-kernels.txt
	@main=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  own=$$($(KBIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$main')" > "$$own/main_environment.pth"
	@touch $(KSTAMP)

# kernels to cubins for every architecture (no GPU is needed), then the C++ libraries with g++; only what changed
# DEBUG=1: into a folder of their own, with assertions in the kernels ($MM2C_PLUGINS names it to a build)
plugins: $(KSTAMP)
	$(KBIN)/python -m mm2c_plugins.kernels.compile --out $(PLUGIN_BUILD) $(if $(DEBUG),--debug)
	$(KBIN)/python -m mm2c_plugins.kernels.embed --build $(PLUGIN_BUILD)
	$(KBIN)/python -m mm2c_plugins.kernels.report $(PLUGIN_BUILD)
	@include=$$($(KBIN)/python -m mm2c_plugins.kernels.toolchain tensorrt-include) && \
	  $(MAKE) --no-print-directory --silent -j $$(nproc) -f plugins/library.mk OUT=$(PLUGIN_BUILD) \
	    GENERATED=$(PLUGIN_BUILD)/generated MM2C_DEBUG=$(if $(DEBUG),1) TENSORRT_INCLUDE="$$include" library host

demo: setup
	$(BIN)/python tests/demo.py --bundle $(OUT)/tiny-m2-tp4

test: setup plugins
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --ignore=tests/serve
	$(BIN)/python -m pytest tests/serve
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(KBIN)/python -m pytest -n auto tests/kernels

# what test-gpu compares with and runs, made here: the demo's bundles, the CPU engine's answers, a program of M2.7
gpu-files: plugins
	$(BIN)/python tests/gpu/files.py

# on a machine with a GPU, after make gpu-files here or elsewhere: no environment is made and nothing is downloaded
test-gpu:
	$(GPU_PYTHON) tests/gpu/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py

bench: setup
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(OUT) build plugins/build plugins/build-debug dist *.egg-info .mypy_path .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
