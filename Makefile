# `make demo` and `make test` work on a fresh machine; everything runs in .venv, which they make themselves.
PY := .venv/bin/python
# A file's tests share fixtures and stay in one process; tests/conftest.py has the order of the files.
PYTEST := $(PY) $(if $(COVERAGE),-m coverage run) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(OPTIONS)
DEMO_DATA := build/demo_data
# glibc returns the memory of each step to the system otherwise, which makes the demo's training take 1.5 times as long.
KEEP_FREED_MEMORY := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=9223372036854775807
export JAX_PLATFORMS ?= cpu

.PHONY: help env demo test test-slow test-torch test-long torch bench bench-gpu lint types docs coverage clean-demo

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

env:  ## the environment in .venv
	@scripts/setup_env.sh

demo: env  ## generate images, train a small TOOD on them, evaluate, draw (4 to 9 minutes on two cores)
	@$(PY) -m tood_jax.data.synthetic --out $(DEMO_DATA) --min-side 24
	@$(KEEP_FREED_MEMORY) $(PY) train.py --config configs/demo.py
	@$(PY) eval.py --checkpoint runs/demo
	@$(PY) predict.py --checkpoint runs/demo --images '$(DEMO_DATA)/val/00000*.jpg' --out runs/demo/predictions
	@cat scripts/demo_goodbye.txt

clean-demo:  ## forget the demo, so that the next one starts anew
	rm -rf runs/demo $(DEMO_DATA)

test: env  ## the tests (about 10 minutes on two cores)
	@$(PYTEST) -m "not slow and not torch"

test-slow: env  ## the long checks
	@$(PYTEST) -m "slow and not torch"

test-torch: torch  ## the checks that need PyTorch
	@$(PYTEST) -m torch

test-long: torch  ## both
	@$(PYTEST) -m "slow or torch"

torch: env  ## PyTorch's CPU build into .venv, once
	@$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install --quiet --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0

bench: env  ## speed of the main pieces beside the committed figures (some minutes)
	@$(PY) -m benchmarks.suite

bench-gpu: env  ## all that is measured on a GPU, into benchmarks/results/gpu (needs jax[cuda12] and a GPU's build of PyTorch)
	@JAX_PLATFORMS=cuda $(PY) -m benchmarks.suite --set gpu

coverage: env  ## what the quick tests cover: a report, and pages in build/coverage
	@rm -rf build/coverage && $(MAKE) -s test COVERAGE=1
	@$(PY) -m coverage combine -q && $(PY) -m coverage html -q && $(PY) -m coverage report --skip-covered --sort=cover | tail -n 25

lint: env  ## ruff
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

types: env  ## mypy
	@$(PY) -m mypy

docs: env  ## the manual as a site in build/site; a broken link is an error
	@$(PY) scripts/config_reference.py --check
	@$(PY) scripts/build_site.py
