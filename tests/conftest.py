"""One real server with the demo bundle for the whole session, and the demo's base in transformers to compare with."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import openai
import pytest
import torch
from transformers import Qwen3ForCausalLM

from reasoning_net.bundle import Bundle
from reasoning_net.demo.base import model_config, save
from reasoning_net.demo.questions import FAMILIES, Question, questions
from reasoning_net.demo.tokenizer import train_tokenizer
from reasoning_net.frozen import FrozenBase
from reasoning_net.manifest import Manifest
from server.observe.metrics import Metrics
from server.settings import DEMO_BUNDLE, DEMO_MODEL

START_SECONDS = 240
OPERATOR_KEY = "operator"
NUM_LATENTS = Manifest.read(DEMO_BUNDLE).num_latent_tokens
"""That the demo serves."""


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is downloaded. Each of two workers takes a core: engines of two threads each would wait for each other."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background with it ignored
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """As IEEE 754 has them: a library that was compiled with -ffast-math flushes them for whoever loads it, and hypothesis then
    refuses to draw floats, whichever test comes next."""
    torch.set_flush_denormal(False)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def running_server(log: Path, *flags: str, when: str = "/ready") -> Iterator[str]:
    """`latentserve serve` in a process of its own, from when that path is answered with 200 on; its URL."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", "--port", str(port), *flags],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}{when}").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def decision_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decisions") / "decisions.jsonl"


@pytest.fixture(scope="session")
def server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="session")
def server(server_log: Path, decision_log: Path) -> Iterator[str]:
    settings = {"LATENTSERVE_OPERATOR_KEY": OPERATOR_KEY, "LATENTSERVE_DECISION_LOG": str(decision_log)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        with running_server(server_log, "--soft-thinking") as url:
            yield url


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def metrics() -> Metrics:
    """One for the process: a series cannot be registered twice."""
    return Metrics()


@pytest.fixture(scope="session")
def base() -> FrozenBase:
    return FrozenBase(str(DEMO_MODEL))


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


@pytest.fixture(scope="session")
def asked() -> list[Question]:
    """Held-out questions."""
    return list(islice(questions(99, "test", families=FAMILIES), 64))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base of the demo's kind, small enough to train on in a test."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("tiny") / "base"
    tokenizer = train_tokenizer(vocab_size=512, corpus_size=300)
    save(Qwen3ForCausalLM(model_config(64, 2, tokenizer)), tokenizer, directory)
    return directory
