"""`make cluster` from its start to its end: part of `make balancers`."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import psutil
import pytest

from deploy.cluster import Kind
from tests.conftest import free_port
from tests.long.balancers import ASKED, CHAT


@contextlib.contextmanager
def one_command(kind: Kind, port: int, logs: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The command's process, and what it says."""
    command = [sys.executable, "-m", "deploy.cluster", "--router", kind, "--port", str(port), "--logs", str(logs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        try:
            yield process, process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["envoy", "vllm-router"])
def test_one_command_starts_and_stops_all(tmp_path: Path, kind: Kind) -> None:
    port = free_port()
    with one_command(kind, port, tmp_path) as (process, said):
        assert any(line.startswith("Ready on ") for line in said)
        body = {"model": "demo", "mode": "latent", "messages": [{"role": "user", "content": ASKED[0]}]}
        response = httpx.post(f"http://127.0.0.1:{port}{CHAT}", timeout=60, json=body)
        assert response.json()["route"]["mode"] == "latent"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 5, "two replicas, their engines, a router"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not psutil.wait_procs(started, 5)[1]


def test_it_ends_with_any_part_and_says_which(tmp_path: Path) -> None:
    port = free_port()
    with one_command("envoy", port, tmp_path) as (process, said):
        assert any(line.startswith("Starting ") for line in said)
        deadline = time.monotonic() + 60
        while not (tmp_path / "envoy.log").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        started = psutil.Process(process.pid).children(recursive=True)
        (replica,) = [child for child in started if str(port + 1) in child.cmdline()]
        replica.kill()
        assert process.wait(60) == 1
        assert f"replica-{port + 1} has ended with exit code -9" in said.read()
        assert not psutil.wait_procs(started, 5)[1]
