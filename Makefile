# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint flight clean

demo: $(STAMP)
	$(BIN)/adaptsplit demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Make the shipped model and profiles of the embedded world again (docs/artefacts.md).
flight: $(STAMP)
	$(BIN)/adaptsplit fit reference --frames flight --out runs/flight/model
	$(BIN)/adaptsplit profile runs/flight/model --frames flight --out runs/flight/profile --workers 2
	mkdir -p adaptsplit/data/flight/model
	cp runs/flight/model/*.onnx runs/flight/model/model.json adaptsplit/data/flight/model/
	cp runs/flight/profile/profile* adaptsplit/data/flight/

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache
