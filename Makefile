PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint slow clean

demo: $(VENV)/.installed
	$(BIN)/vitdeploy export vit-digits --int8 --target onnx --target openvino --output demo --force

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --max-worker-restart 0

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) demo dist build
