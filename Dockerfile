# docker build --build-arg DEVICE=cpu .      (or cuda)
ARG DEVICE=cpu
FROM python:3.11-slim-bookworm AS build
ARG DEVICE
# PyTorch's CPU wheels come from an index of their own: pass it as PIP_EXTRA_INDEX_URL.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /opt/venv
COPY requirements-${DEVICE}*.lock ./
RUN for lock in requirements-*.lock; do /opt/venv/bin/pip install --no-deps -r $lock || exit; done
COPY pyproject.toml README.md LICENSE ./
COPY server ./server
COPY router ./router
COPY reasoning_net ./reasoning_net
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
ARG DEVICE
# A C++ compiler: vLLM compiles kernels for the machine that it finds. libnuma: its CPU build links it.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
RUN useradd --create-home --uid 10001 latentserve
USER latentserve
WORKDIR /home/latentserve
RUN mkdir -p .cache/huggingface
ENV PATH=/opt/venv/bin:$PATH LATENTSERVE_HOST=0.0.0.0 LATENTSERVE_PORT=8000 LATENTSERVE_DEVICE=${DEVICE}
EXPOSE 8000
# The first start may download a model for half an hour; it ends as soon as the server is ready.
HEALTHCHECK --interval=10s --timeout=3s --start-period=1800s \
    CMD python -c "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"LATENTSERVE_PORT\"]}/ready')"
ENTRYPOINT ["latentserve", "serve"]
