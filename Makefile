# make demo   sets up, then a search on sample specimens (minutes)
# make test   sets up, then all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A setup that was cut off, or one with an older Python, is begun anew.
IS_WHOLE = $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
OLDEST := .venv-oldest
PYTHON312 ?= python3.12
QUICK := -m "not slow"
ONE_SEARCH := tests/cli/test_tune.py -k contracts_folder

.PHONY: setup demo test test-quick test-oldest test-python312 soak lint types bench bench-replay bench-gpu bench-setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12 setup" >&2; exit 2; }
	@$(IS_WHOLE) || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python scripts/tune.py --space demo.yaml --name demo --overwrite

# Two processes, a file at a time: most of the time goes to starts of Ray, which leave a core idle.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: setup
	$(BIN)/python -m pytest $(QUICK)

# The quick tests and one search, with the lower bounds in pyproject.toml as they are.
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest $(QUICK)
	$(OLDEST)/bin/python -m pytest $(ONE_SEARCH)

$(OLDEST)/.ready: pyproject.toml $(READY)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(BIN)/uv pip compile --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --extra dev pyproject.toml \
		--output-file $(OLDEST)/versions.txt
	$(BIN)/uv pip sync --quiet --python $(OLDEST)/bin/python $(OLDEST)/versions.txt
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps --editable .
	touch $@

# The quick tests and one search with another Python.
test-python312:
	$(MAKE) test-quick PYTHON=$(PYTHON312) VENV=.venv-python312
	.venv-python312/bin/python -m pytest $(ONE_SEARCH)

# Twenty kills of a search at random moments, where `make test` has three.
soak: setup
	SOAK_KILLS=20 $(BIN)/python -m pytest -s tests/faults/test_driver.py -k random_moments

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# What is claimed of speed and memory, side by side with peers, on the machine's processors: best left alone meanwhile.
# Results are appended in benchmarks/results/.
bench: bench-setup
	$(BIN)/python benchmarks/trial_start.py
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/batch_memory.py
	$(BIN)/python benchmarks/many_trials.py
	$(BIN)/python benchmarks/many_images.py
	$(BIN)/python benchmarks/concurrent_trials.py

# Searches replayed on recorded curves, in virtual time: the same on every machine. Goes on where it was stopped.
bench-replay: setup
	$(BIN)/python benchmarks/replay.py run --scratch replay
	$(BIN)/python benchmarks/replay.py table --scratch replay
	$(BIN)/python benchmarks/replay.py run --scratch replay --noise "left out" --seeds 20 --budgets 24
	$(BIN)/python benchmarks/replay.py table --scratch replay --noise "left out"

# What needs a GPU; ends at once where there is none. CIFAR: a folder with train/<class>/ and test/<class>/.
CIFAR ?= cifar
bench-gpu: bench-setup
	$(BIN)/python benchmarks/throughput.py --gpu --check-syncs
	$(BIN)/python benchmarks/augmentation.py --device cuda
	$(BIN)/python benchmarks/batch_memory.py --gpu
	$(BIN)/python benchmarks/gpu_cifar.py --data $(CIFAR)

bench-setup: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,bench]'

clean:
	rm -rf $(VENV) $(OLDEST) .venv-python312 build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
