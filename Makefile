# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_LINK_MODE ?= copy
# Packages are compiled once, at installation, and not anew by every process of the tests.
export UV_COMPILE_BYTECODE ?= 1

.PHONY: demo test lint docs clean
.DEFAULT_GOAL := demo

$(VENV)/bin/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.core: pyproject.toml | $(VENV)/bin/uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet -e .
	touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/bin/uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet -e ".[all]"
	touch $(VENV)/.core $@

demo: $(VENV)/.core
	$(BIN)/torchstone compare --data digits \
	  --models inceptionnext_mini32 ecanet_mini32 timm:test_convnext torchvision:shufflenet_v2_x0_5 \
	  --seeds 2 --epochs 8 --out demo

lint: $(VENV)/.all
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.all lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not shapes and not interpreter"
	$(BIN)/python -m pytest -m shapes
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m interpreter

docs: $(VENV)/.all
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site demo
