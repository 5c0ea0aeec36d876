# Every target works from a fresh clone: the environment in $(VENV) is made on the first use.
#   VENV=/path       use (or make) the environment there; default: the active one, else .venv
#   PYTHON=/path     an interpreter: one that holds torch or is in a virtual environment is used as
#                    it is, any other is what $(VENV) is made from
# Build settings (ATTNOPS_CPU, ATTNOPS_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX): docs/building.md.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Only a recipe that needs the interpreter asks for it.
SELECT = "$(or $(PYTHON),python3)" build_tools/environment.py
ENVIRONMENT = $(SELECT) --venv "$(VENV)" $(if $(PYTHON),--given)
PY = "$$($(ENVIRONMENT) --print)"

# Triton kernels run in Triton's interpreter, on CPU tensors; `make gpu` runs them compiled. One
# thread a worker, the workers fill the cores; tests of threading ask for more themselves.
PYTEST_JOBS ?= auto
PYTEST = TRITON_INTERPRET=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -q
PARALLEL = -n $(PYTEST_JOBS) --maxprocesses 8 --dist worksteal

CPP_SOURCES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help env build demo test test-all test-wheel check docs aot bench gpu wheel clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

env:
	@$(ENVIRONMENT)

build: env  ## compile the libraries into attnops/lib (incremental)
	@$(PY) setup.py -q build_ext --inplace

demo: build  ## the main job on a real picture, the table and a short training; pictures in demo/
	@$(PY) -m attnops.benchmarks demo
	@$(PY) examples/denoise.py --out demo

test: build  ## the fast test suite
	@$(PYTEST) $(PARALLEL) -m "not slow" tests

test-all: build  ## every test, the slow ones too
	@$(PYTEST) $(PARALLEL) tests

test-wheel: build  ## wheels, installed in other environments and run outside the checkout
	@$(PYTEST) -m slow tests/tools/test_packaging.py

check: env  ## formatting and lint of Python and C++
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@PATH="$$(dirname $(PY)):$$PATH" clang-format --dry-run -Werror $(CPP_SOURCES)

docs:  ## the documentation as static pages, build/site/index.html
	@$(ENVIRONMENT) --extra docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo build/site/index.html

aot: build  ## compile every GPU kernel ahead of time, table its resources and judge its code
	@$(PY) -m attnops.kernels.aot
	@$(PY) -m attnops.benchmarks static --out build/aot \
		--compare benchmarks/results/static-sm90/static.json

bench: build  ## the paper's table of the asymmetric block on this machine
	@$(PY) -m attnops.benchmarks apnb-table

# Nothing is installed: it uses the interpreter that has torch, with no network. BUDGET is in
# seconds, behind the build; ATTNOPS_PEERS a folder with libraries to compare with.
BUDGET ?= 290
RESULTS ?= benchmarks/results
gpu: export TORCH_CUDA_ARCH_LIST ?= native
gpu: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu:  ## check and time the kernels on this GPU: BUDGET=290 seconds, files in RESULTS=benchmarks/results
	@PY="$$($(ENVIRONMENT) --existing)" && \
	"$$PY" -m build_tools --link && \
	"$$PY" -m attnops.benchmarks gpu --out "$(RESULTS)" --budget "$(BUDGET)"

wheel: env  ## dist/attnops-*.whl, one for every Python
	@$(PY) -m pip wheel -q . --no-deps --no-build-isolation --wheel-dir dist
	@ls dist/*.whl

dist: wheel  ## dist/: the sdist and the wheel
	@$(PY) setup.py -q sdist
	@ls dist/*.tar.gz

clean:  ## remove what builds made (not the environment)
	@rm -rf build dist demo attnops.egg-info attnops/lib attnops/_C*.so
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
