# Thin wrappers on the `frontier-tune` command. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

RECIPE ?= recipes/month_end_close.yaml
SMOKE  ?= recipes/smoke.yaml
RUN    ?= runs/latest
SET    ?=
# Those that need nothing but a set-up machine; the others read finished runs or data of yours (see their first lines).
BENCH  ?= step_vs_trl learner_vs_trl expert_lora_block adapter_tax routing_op
# A working nvidia-smi means the GPU lock; DEVICE=cpu overrides. PYTHON=python3.12 chooses the interpreter.
DEVICE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

# Waiting OpenMP threads that spin cost 5 to 20 times in wall clock where processes share cores.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
# Nothing leaves the machine.
export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export VLLM_DO_NOT_TRACK := 1
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0
export WANDB_ERROR_REPORTING ?= false
export PYTHON

# The stamp of a finished set-up, for this device and this place (a moved .venv has to be made again).
READY := .venv/.ready-$(DEVICE)-$(shell pwd | cksum | cut -d' ' -f1)
PY    := .venv/bin/python
TUNE  := .venv/bin/frontier-tune
# Other projects' packages, seen by the tests that name this directory alone. Made again with .venv.
PEERS := .venv/peers

.PHONY: help setup tune tune-smoke eval test test-fast test-peers test-faults check base bench bench-algorithms bench-stability report doctor clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' Makefile

$(READY): requirements/$(DEVICE).lock pyproject.toml scripts/setup.sh scripts/torch_build.py
	@scripts/setup.sh $(DEVICE) $(READY)

setup: $(READY) ## make .venv from the lock file (first time: some minutes)

tune: $(READY) ## tune by a recipe: make tune RECIPE=path SET="key=value ..."
	$(TUNE) tune $(RECIPE) $(SET)

tune-smoke: $(READY) ## the same code path in at most two minutes
	$(TUNE) tune $(SMOKE) $(SET)

eval: $(READY) ## evaluate a run's base and adapter again, beside the first: make eval RUN=runs/latest
	$(TUNE) eval $(RUN) $(SET)

report: $(READY) ## write a run's report.html and learning curve again: make report RUN=runs/latest
	$(TUNE) report $(RUN)

base: $(READY) ## build the nano base from scratch
	$(TUNE) base build $(SET)

test: $(READY) ## all tests, with coverage
	$(PY) -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-report=xml

test-faults: $(READY) ## kill processes, nodes and disks of runs, and compare with runs that nobody disturbed (half an hour)
	FRONTIER_TUNE_FAULTS=full $(PY) -m pytest -q tests/faults tests/cluster tests/e2e/test_signals.py tests/sandbox/test_pool.py

$(PEERS)/.ready: requirements/peers.lock $(READY)
	@echo "== Installing $$(grep -vc '^#' $<) packages from $< into $(PEERS)" >&2
	@rm -rf $(PEERS)
	@$(PY) -m pip install --quiet --progress-bar off --no-deps --target $(PEERS) -r $<
	@touch $@

test-peers: $(PEERS)/.ready ## the bridges of docs/interop.md against OpenEnv's and verifiers' own packages
	PYTHONPATH=$(CURDIR)/$(PEERS) $(PY) -m pytest -q tests/interop/test_openenv.py tests/interop/test_verifiers.py

test-fast: $(READY) ## the tests that take seconds
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow" -q

check: $(READY) ## format, lint, types, import arrows
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_arrows.py tests/test_house.py

bench: $(READY) ## the benchmarks that take minutes, or BENCH="name ...": writes benchmarks/results/<name>.json
	@set -e; for name in $(BENCH); do echo "== $$name"; $(PY) benchmarks/$$name.py --json benchmarks/results/$$name.json; done

bench-algorithms: $(READY) ## every algorithm, three seeds each: hours, in slices (SLICES=2: two more runs; KEEP=1: those of benchmarks/results are made)
	$(PY) benchmarks/bench_algorithms.py $(if $(SLICES),--slices $(SLICES)) $(if $(KEEP),$(addprefix --with ,$(wildcard benchmarks/results/bench_algorithms.json))) --json benchmarks/results/bench_algorithms.json

bench-stability: $(READY) ## training with routing replay and without, three seeds each: hours, in slices
	$(PY) benchmarks/moe_stability.py $(if $(SLICES),--slices $(SLICES)) $(if $(KEEP),$(addprefix --with ,$(wildcard benchmarks/results/moe_stability.json))) --json benchmarks/results/moe_stability.json

doctor: $(READY) ## what this machine has and lacks, and what that means
	@$(TUNE) doctor

clean: ## remove caches and build output (not .venv, not runs/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* coverage.xml
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
