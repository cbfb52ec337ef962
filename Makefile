# Everything a person does here, and everything CI does. Each target makes .venv if it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUTPUT ?= runs/$(shell date +%Y-%m-%d-%H%M%S)
PYTEST_FLAGS ?=

.PHONY: run test slow faults chaos lint format bench notebooks build clean

# Co-learning on Ray with five simulated data centers, then the comparison with training on the
# pooled data. Ends with the table and the path of the picture.
run: $(INSTALLED)
	$(BIN)/mdc run simulations/arms/co-learning.toml --sites 5 --seed 1 \
		--set max-train-examples=500 --set batch-size=16 --set epoch-budget=24 --set local-epochs=3 \
		--output $(OUTPUT)/ray
	$(BIN)/mdc compare simulations/comparisons/digits.toml --output $(OUTPUT)/comparison

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# What takes a minute or more and is left out of `make test`; some need root.
slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# All that can go wrong, slow ones with real processes included; some need root.
faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults tests/faults $(PYTEST_FLAGS)

# Twenty-five kills of the coordinator at random moments.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.faults.chaos

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m simulations.bench
	$(BIN)/python -m simulations.deployment_cost

# Every notebook anew, in place, from the committed results.
notebooks: $(INSTALLED)
	$(BIN)/python -m simulations.execute_notebooks

build: $(INSTALLED)
	$(BIN)/flwr build

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
