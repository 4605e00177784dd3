# lorasweep. `make sweep` and `make test` need nothing but Python 3.11 to 3.13 and make: they build .venv themselves.
SWEEP ?= quickstart
ARGS ?=
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
LORASWEEP = $(VENV)/bin/lorasweep
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
INPUTS = pyproject.toml constraints.txt
# a file's tests share what it has set up; the longest files begin
SHARED = --dist loadfile --no-loadscope-reorder
PYTEST = $(VENV)/bin/python -m pytest $(SHARED)

# every process of a sweep or a test would compile our modules anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup sweep resume plan leaderboard report promote ui doctor wheel test test-fast torture coverage mutants lint bench soak audit gpu bases clean

help:  ## this list
	@echo "make TARGET [SWEEP=name] [ARGS=\"overrides\"]      (SWEEP is a file in sweeps/; default: quickstart)"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*## "} {printf "  %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.runtime  ## create .venv and install lorasweep with pinned versions

sweep: $(VENV)/.runtime  ## run SWEEP, or continue it where it stopped; prints the leaderboard
	@$(LORASWEEP) sweep $(SWEEP) $(ARGS)

resume: $(VENV)/.runtime  ## continue SWEEP with the overrides it was started with
	@$(LORASWEEP) resume $(SWEEP) $(ARGS)

plan: $(VENV)/.runtime  ## show what SWEEP would run; trains nothing
	@$(LORASWEEP) plan $(SWEEP) $(ARGS)

leaderboard: $(VENV)/.runtime  ## the ranked trials of SWEEP
	@$(LORASWEEP) leaderboard $(SWEEP) $(ARGS)

report: $(VENV)/.runtime  ## write the HTML report of SWEEP
	@$(LORASWEEP) report $(SWEEP) $(ARGS)

promote: $(VENV)/.runtime  ## score the best trial of SWEEP on the test split and register it as champion
	@$(LORASWEEP) promote $(SWEEP) $(ARGS)

ui: $(VENV)/.runtime  ## the MLflow UI, opened at SWEEP's leaderboard
	@$(LORASWEEP) ui $(SWEEP) $(ARGS)

doctor: $(VENV)/.runtime  ## versions, devices, storage; what would not work and how to mend it
	@$(LORASWEEP) doctor $(ARGS)

wheel: $(VENV)/bin/python  ## build dist/lorasweep-VERSION-py3-none-any.whl, which works outside this folder
	@$(VENV)/bin/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist . && ls dist/*.whl

test: $(VENV)/.dev  ## the tests that need no GPU, but for those that take long
	@$(PYTEST) -n 4 -m "not gpu and not torture" $(ARGS)

test-fast: $(VENV)/.dev  ## the tests that take seconds
	@$(PYTEST) -n 2 -m "not gpu and not slow and not torture" $(ARGS)

torture: $(VENV)/.dev  ## the long tests: sweeps killed at every failpoint and at random moments, clusters, thousands of made-up inputs
	@$(VENV)/bin/python -m pytest -m torture $(ARGS)

coverage: $(VENV)/.dev  ## which lines of src/ the tests run, commands in processes of their own included
	@$(VENV)/bin/coverage erase
	@$(VENV)/bin/coverage run -m pytest $(SHARED) -n 3 -m "not gpu and not torture" $(ARGS)
	@$(VENV)/bin/coverage combine --quiet && $(VENV)/bin/coverage report --skip-covered --fail-under=90

mutants: $(VENV)/.dev  ## small mistakes in the packed engine, the gate and resume: each must fail a test
	@$(VENV)/bin/python tests/mutation/spot_checks.py $(ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

bench: $(VENV)/.dev  ## packed trials against the Trainer and plain PEFT, interleaved; BASE=DIR DATA=DIR (train.tsv, dev.tsv) for your own
	@$(VENV)/bin/python benchmarks/steps.py --name tiny --batch-size 2 --slots 1 4 16 32
	@$(VENV)/bin/python benchmarks/packed.py --name tiny --trials 16 --steps 50 --batch-size 2 --eval-steps 25 $(ARGS)
	@test -z "$(BASE)" || $(VENV)/bin/python benchmarks/steps.py --name base --model $(BASE) --train $(DATA)/train.tsv --targets query,value --steps 10 --slots 1 4 8
	@test -z "$(BASE)" || $(VENV)/bin/python benchmarks/packed.py --name base --model $(BASE) --train $(DATA)/train.tsv --eval $(DATA)/dev.tsv $(ARGS)

gpu:  ## tests and benchmark of a GPU, by any python3 that has torch: under 9 minutes, results in gpu-results/ (WHEELS=folder)
	@python3 -c 'import torch' 2>/dev/null && python=python3 || { $(MAKE) --no-print-directory $(VENV)/.dev && python=$(VENV)/bin/python; }; \
	$$python benchmarks/gpu $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

soak: $(VENV)/.dev  ## 500 short trials in one process: does memory grow, is a handle or thread left over?
	@$(VENV)/bin/python benchmarks/soak.py $(ARGS)

audit: $(VENV)/.dev  ## known vulnerabilities of the installed packages, by pip-audit; needs the network
	@$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet "pip-audit>=2.9"
	@$(VENV)/bin/pip-audit --skip-editable --progress-spinner off $(ARGS)

bases: $(VENV)/.runtime  ## pretrain the tiny demo bases again, from generated text
	@$(VENV)/bin/python -m lorasweep.models.pretrain src/lorasweep/models/bases $(ARGS)

clean:  ## remove .venv and caches; what sweeps left (mlflow.db, mlruns/) stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "lorasweep needs Python 3.11 to 3.13, found %d.%d; set PYTHON=/path/to/python3.11" % v)'
	@$(PYTHON) -m venv $(VENV)

# torch first and alone: pip then keeps this build when other packages ask for "some torch".
$(VENV)/.runtime: $(INPUTS) | $(VENV)/bin/python
	@echo "Installing lorasweep and its pinned dependencies (a few minutes, once)"
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the development tools"
	@$(PIP) -e ".[dev]"
	@touch $@
