# Everything a person does here, and everything CI does. Each target makes .venv if it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUTPUT ?= runs/$(shell date +%Y-%m-%d-%H%M%S)
PYTEST_FLAGS ?=

.PHONY: install run test integration slow gpu faults chaos lint format bench notebooks build clean

install: $(INSTALLED)

# Co-learning on Ray with five simulated data centers, then the comparison with training on the
# pooled data. Ends with the table and the path of the picture.
run: $(INSTALLED)
	$(BIN)/mdc run simulations/arms/co-learning.toml --sites 5 --seed 1 \
		--set max-train-examples=500 --set batch-size=16 --set epoch-budget=12 --set local-epochs=3 \
		--output $(OUTPUT)/ray
	$(BIN)/mdc compare simulations/comparisons/digits.toml --output $(OUTPUT)/comparison

# What needs no other process than Python's own: minutes.
test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# Ray, SuperLinks, SuperNodes, notebook kernels, Chromium, network namespaces, large models. Three
# workers for two cores, because such tests often wait.
integration: $(INSTALLED)
	$(BIN)/python -m pytest -m 'integration and not slow' -n 3 $(PYTEST_FLAGS)

# Faults of real processes, and every command of the documentation; some tests need root.
slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n 3 $(PYTEST_FLAGS)

# What needs a GPU with CUDA; without one, every test is skipped.
gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu $(PYTEST_FLAGS)

# Everything that can go wrong, in any of the three tiers.
faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults tests/faults $(PYTEST_FLAGS)

# Twenty-five kills of the coordinator at random moments.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.faults.chaos

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m simulations.benchmarks.training_loop
	$(BIN)/python -m simulations.benchmarks.deployment_cost
	$(BIN)/python -m tests.integration.site_cost
	$(BIN)/python -m tests.faults.transfer_cost

# Every notebook anew, in place, from the committed results.
notebooks: $(INSTALLED)
	$(BIN)/python -m simulations.notebooks.execute

build: $(INSTALLED)
	$(BIN)/flwr build

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@
