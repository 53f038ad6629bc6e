# Every target makes its own environment: a machine with Python >= 3.10 is all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow quality style clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# curvlinops: a reference for the metric's tests; its own requirements would bring torchvision.
$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,quality]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps curvlinops-for-pytorch==3.0.1 einconv einops linear_operator opt_einsum
	@touch $@

demo: $(INSTALLED) ## learn a second task without losing the first, on two CPU cores, without a network
	$(BIN)/hf-fip run demo --output_dir outputs/demo

test: $(INSTALLED) ## the tests that take seconds each
	$(BIN)/python -m pytest -n 2 -m "not slow" tests

test-slow: $(INSTALLED) ## the tests that take minutes
	$(BIN)/python -m pytest -n 2 -m slow tests

quality: $(INSTALLED) ## lint and format, check only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(INSTALLED) ## lint and format, with fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) outputs
