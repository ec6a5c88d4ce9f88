# make demo   sets up, then a search on sample specimens (minutes)
# make test   sets up, then all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-quick soak lint types bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python scripts/tune.py --space demo.yaml --name demo --overwrite

# Two processes, a file at a time: most of the time goes to starts of Ray, which leave a core idle.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: setup
	$(BIN)/python -m pytest -m "not slow"

# Twenty kills of a search at random moments, where `make test` has three.
soak: setup
	SOAK_KILLS=20 $(BIN)/python -m pytest -s tests/faults/test_driver.py -k random_moments

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python benchmarks/trial_start.py
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/gradient_cache.py
	$(BIN)/python benchmarks/many_trials.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
