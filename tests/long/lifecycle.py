"""The life of a server's processes: how they end, whoever ends them, and what is left behind (nothing)."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import START_SECONDS, free_port

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
QUESTION = "Ann has 5 pens. In January, she finds 3 pens. How many pens does Ann have now?"
Answer = asyncio.Task[httpx.Response]
ASKED = {"messages": [{"role": "user", "content": QUESTION}]}
ENDLESS = 1900
SECONDS_OF_TOKENS = 1000  # on a fast machine, too: long enough to be seen running
"""Tokens that take longer than a test waits."""
LONG_TEXT = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "string", "minLength": 9000}}}}
"""What keeps a Messages answer from ending: Anthropic's protocol has no `ignore_eos`."""


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Popen
    log: Path
    temporary: Path
    """Its directory of temporary files."""

    def processes(self) -> list[psutil.Process]:
        """All of them that live, whoever is their parent now."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(one.pid) == self.process.pid and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def engines(self) -> list[psutil.Process]:
        found = []
        for one in self.processes():
            with contextlib.suppress(psutil.Error):  # a process that starts the engine ends between two looks
                if "EngineCor" in one.name():
                    found.append(one)
        return found

    def shared_memory(self) -> set[str]:
        """Files in memory that any of its processes has."""
        found = set()
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                found |= {mapped.path for mapped in one.memory_maps() if mapped.path.startswith("/dev/shm/")}
        return found

    def status(self, path: str) -> int | None:
        """Of an answer, or None when nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url + path).status_code
        return None

    def running(self) -> int:
        """Requests, in the engine."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:num_requests_running{"))

    def ends(self, seconds: float, shared: Collection[str] = (), *, killed: bool = False) -> int:
        """Its exit code. Nothing of it is left: no process, no file in memory, no socket; of an engine that was killed, one
        file of torch's."""
        code = self.process.wait(seconds)
        until(lambda: not self.processes(), 5)
        assert {path for path in shared if os.path.exists(path)} == set()
        left = {path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")}
        assert not left or (killed and all(name.startswith("vllm_dist_") for name in left))
        return int(code)


@contextlib.contextmanager
def starting(directory: Path, *flags: str, open_files: int | None = None, **settings: object) -> Iterator[Server]:
    """A server in a session of its own. Whatever of it is left at the end is killed."""
    port, log = free_port(), directory / "log.txt"
    temporary = Path(tempfile.mkdtemp(prefix="life-"))  # a socket's path must be short
    variables = {f"LATENTSERVE_{name.upper()}": str(value) for name, value in settings.items()}

    def limit() -> None:
        if open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    with log.open("w") as output:
        process = psutil.Popen(
            [sys.executable, "-m", "server.cli", "serve", "--port", str(port), *flags],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=limit,
            env=os.environ | variables | {"TMPDIR": str(temporary)},
        )  # fmt: skip
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log, temporary)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        shutil.rmtree(temporary)


@contextlib.contextmanager
def started(directory: Path, **options: Any) -> Iterator[Server]:
    with starting(directory, **options) as server:
        until(lambda: server.process.poll() is not None or server.status("/ready") == 200, START_SECONDS)
        assert server.process.poll() is None, server.log.read_text()[-6000:]
        yield server


def until(holds: Callable[[], object], seconds: float, every: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(every)


def explicit(max_tokens: int, **options: Any) -> dict[str, Any]:
    return {"model": "demo", "mode": "explicit", "ignore_eos": True, "max_tokens": max_tokens} | options


def a_stream_and_a_body(max_tokens: int) -> dict[str, dict[str, Any]]:
    return {
        CHAT: explicit(max_tokens, **ASKED, stream=True),
        COMPLETIONS: explicit(max_tokens, prompt=QUESTION),
    }


async def in_flight(server: Server, http: httpx.AsyncClient, bodies: dict[str, dict[str, Any]]) -> dict[str, Answer]:
    """Requests by path, all of them running in the engine. One that ends before that tells why."""
    tasks = {path: asyncio.create_task(http.post(path, json=body)) for path, body in bodies.items()}
    await asyncio.to_thread(until, lambda: server.running() == len(tasks) or any(one.done() for one in tasks.values()), 30)
    assert [(one.result().status_code, one.result().text[-300:]) for one in tasks.values() if one.done()] == []
    return tasks


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For two tests, of which the second one ends it."""
    with started(tmp_path_factory.mktemp("life"), open_files=256, client_timeout_seconds=2, drain_seconds=60) as server:
        yield server


def test_clients_that_hold_connections_harm_nobody(server: Server) -> None:
    """Slow heads, huge heads, and more connections than there are file descriptors."""
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    head = b"GET /health HTTP/1.1\r\nHost: me\r\n"

    def connect(sent: bytes) -> socket.socket:
        client = socket.create_connection((host, port), 10)
        client.sendall(sent)
        return client

    with connect(b"") as silent, connect(head) as slow, connect(head + b"\r\n") as slow_later:
        assert slow_later.recv(2**16).startswith(b"HTTP/1.1 200")
        slow_later.sendall(head)  # later than the first, on a connection that is kept
        assert [client.recv(2**16) for client in (silent, slow, slow_later)] == [b"", b"", b""]
    for huge in (b"X: " + b"x" * 100_000, b"\r\n".join(b"X: " + b"x" * 1000 for _ in range(70)) + b"\r\n\r\n"):
        with connect(head + huge) as client:
            assert client.recv(2**16).startswith(b"HTTP/1.1 431")
    with connect(head + b"X: " + b"x" * 30_000 + b"\r\n\r\n") as client:
        assert client.recv(2**16).startswith(b"HTTP/1.1 200")

    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(connect(b""))
        until(lambda: server.process.num_fds() >= 250, 10, every=0.01)
    until(lambda: server.status("/health") == 200, 10)
    chat = httpx.post(server.url + CHAT, json=explicit(8, **ASKED), timeout=30)
    assert chat.json()["usage"]["completion_tokens"] == 8


async def test_a_signal_lets_running_requests_end(server: Server) -> None:
    shared = server.shared_memory()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        tasks = await in_flight(server, http, a_stream_and_a_body(SECONDS_OF_TOKENS))
        server.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(until, lambda: server.status("/ready") == 503, 1)
        assert server.status("/health") == 200
        refused = await http.post(CHAT, json=explicit(8, **ASKED))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        counted = 'latentserve_failures_total{requested="unknown",type="unavailable"} 1.0'  # no alert: nothing is broken
        assert counted in (await http.get("/metrics")).text
        answers = {path: await task for path, task in tasks.items()}
    assert {answer.status_code for answer in answers.values()} == {200}
    assert events(answers[CHAT].text)[-1]["choices"][0]["finish_reason"] == "length"
    assert answers[COMPLETIONS].json()["usage"]["completion_tokens"] == SECONDS_OF_TOKENS
    assert server.ends(15, shared) == 0
    assert "Traceback" not in server.log.read_text()


async def test_what_does_not_end_in_time_is_aborted_with_an_error(tmp_path: Path) -> None:
    """In every protocol's own shape."""
    bodies = a_stream_and_a_body(ENDLESS) | {
        RESPONSES: explicit(ENDLESS, input=QUESTION, stream=True, max_output_tokens=ENDLESS),
        MESSAGES: {"model": "demo", "mode": "direct", "max_tokens": ENDLESS, "stream": True, **ASKED, **LONG_TEXT},
    }
    with started(tmp_path, drain_seconds=0.5) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            tasks = await in_flight(server, http, bodies)
            server.process.terminate()
            answers = {path: await task for path, task in tasks.items()}
        assert answers[COMPLETIONS].status_code == 503
        assert answers[COMPLETIONS].headers["x-reject-reason"] == "draining"
        last = {path: events(answer.text)[-1] for path, answer in answers.items() if path != COMPLETIONS}
        assert last[CHAT]["error"]["code"] == 503
        assert (last[RESPONSES]["type"], last[RESPONSES]["code"]) == ("error", "503")
        assert (last[MESSAGES]["type"], last[MESSAGES]["error"]["type"]) == ("error", "ServiceUnavailableError")
        assert all("shutting down" in answer.text for answer in answers.values())
        assert server.ends(15) == 0


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with started(tmp_path, drain_seconds=60) as server:
        shared = server.shared_memory()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            tasks = await in_flight(server, http, a_stream_and_a_body(ENDLESS))
            server.process.terminate()
            await asyncio.to_thread(until, lambda: server.status("/ready") == 503, 1)
            server.process.terminate()
            server.process.wait(3)
            assert all(
                isinstance(end, httpx.TransportError | httpx.Response)
                for end in await asyncio.gather(*tasks.values(), return_exceptions=True)
            )
        server.ends(1, shared, killed=True)


def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with starting(tmp_path) as server:
        until(server.engines, START_SECONDS)
        server.process.terminate()
        server.ends(15, killed=True)
        assert "Traceback" not in server.log.read_text()


async def test_it_ends_with_its_engine(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        shared = server.shared_memory()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            tasks = await in_flight(server, http, a_stream_and_a_body(ENDLESS))
            (engine,) = server.engines()
            engine.kill()
            answers = {path: await task for path, task in tasks.items()}
        assert events(answers[CHAT].text)[-1]["error"]["code"] == 500
        assert answers[COMPLETIONS].status_code == 500
        assert server.status("/ready") in (503, None)
        assert server.status("/health") in (503, None)
        assert server.ends(10, shared, killed=True) == 1
        (said,) = [line for line in server.log.read_text().splitlines() if line.startswith("latentserve: ")]
        assert "the engine's process has died (signal 9)" in said


def test_its_engine_ends_with_it(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        shared = server.shared_memory()
        server.process.kill()
        until(lambda: not server.processes(), 5)
        assert server.ends(1, shared, killed=True) == -signal.SIGKILL


def test_its_engine_ends_with_it_while_it_starts(tmp_path: Path) -> None:
    with starting(tmp_path) as server:
        until(server.engines, START_SECONDS)
        server.process.kill()
        until(lambda: not server.processes(), 10)
        assert server.ends(1, killed=True) == -signal.SIGKILL
