"""Behind Ray Serve, on a cluster of two nodes: `make ray`. Replicas come and go with the expected work, and a node is lost."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from deploy.ray import SECONDS_OUTSTANDING
from tests.long.balancers import ASKED, CHAT, LONG, modes_pass, until
from tests.long.ray_cluster import NODE, RUN, WAIT, Service, by_expected_work, serving

SESSIONS = [f"session-{number}" for number in range(24)]
LONGER = LONG | {"max_tokens": 900}
TARGET_SECONDS = 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("ray"), by_expected_work(TARGET_SECONDS)) as service:
        yield service


async def series(client: httpx.AsyncClient, session: str = "") -> dict[str, float]:
    """Of the replica that the session is at."""
    lines = (await client.get("/metrics", headers={"X-Session-ID": session})).raise_for_status().text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


async def home(client: httpx.AsyncClient, session: str) -> float:
    """When the process of the session's replica began: no two of them began together."""
    return (await series(client, session))["process_start_time_seconds"]


async def answered(client: httpx.AsyncClient, session: str) -> float:
    """Requests, by the session's replica."""
    values = await series(client, session)
    return sum(value for name, value in values.items() if name.startswith("latentserve_requests_total{"))


@dataclass
class Asked:
    """Requests of sessions, and what came of them."""

    client: httpx.AsyncClient
    tasks: dict[str, list[asyncio.Task[httpx.Response]]] = field(default_factory=dict)

    def ask(self, session: str, number: int, **body: Any) -> asyncio.Task[httpx.Response]:
        messages = [{"role": "user", "content": ASKED[number % len(ASKED)]}]
        body = {"model": "demo", "messages": messages} | body
        task = asyncio.create_task(self.client.post(CHAT, json=body, headers={"X-Session-ID": session}))
        self.tasks.setdefault(session, []).append(task)
        return task

    async def keep_asking(self, session: str, enough: asyncio.Event, **body: Any) -> None:
        number = 0
        while not enough.is_set():
            number += 1
            if (await self.ask(session, number, **body)).status_code != 200:
                await asyncio.sleep(0.5)

    async def codes(self, *sessions: str) -> Counter[int]:
        """Of these sessions, of all by default."""
        tasks = [task for session in sessions or self.tasks for task in self.tasks.get(session, ())]
        return Counter(response.status_code for response in await asyncio.gather(*tasks))


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=300) as client:
        yield client


async def test_modes_and_headers_pass(client: httpx.AsyncClient) -> None:
    await modes_pass(client)


async def test_streams_are_streamed_and_end_with_their_client(client: httpx.AsyncClient) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": ASKED[0]}], "stream": True} | LONGER
    started, arrivals = time.monotonic(), list[float]()
    async with client.stream("POST", CHAT, json=body | {"max_tokens": 200}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for _ in response.aiter_lines():
            arrivals.append(time.monotonic() - started)
    assert len(arrivals) > 200
    assert arrivals[0] < arrivals[-1] / 2
    async with client.stream("POST", CHAT, json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        running = 'vllm:num_requests_running{engine="0",model_name="demo"}'
        assert (await series(client))[running] == 1
        assert (await series(client))[SECONDS_OUTSTANDING] > 0

    async def is_idle() -> bool:
        return (await series(client))[running] == 0

    await until(is_idle, 5)


async def grow(service: Service, client: httpx.AsyncClient) -> tuple[dict[str, float], float]:
    """To two replicas, by load; by session, which it then is at, and the seconds that it took."""
    asked, enough = Asked(client), asyncio.Event()
    asking = [asyncio.create_task(asked.keep_asking(session, enough, **LONG)) for session in SESSIONS]
    seconds = await service.grown(2)
    homes = {session: await home(client, session) for session in SESSIONS}
    enough.set()
    await asyncio.gather(*asking)
    assert set(await asked.codes()) == {200}
    return homes, seconds


async def test_replicas_come_and_go_with_the_work(service: Service, client: httpx.AsyncClient) -> None:
    assert service.replicas() == 1
    homes, grew_seconds = await grow(service, client)
    assert len(set(homes.values())) == 2

    # A session stays where it is.
    for _ in range(3):
        await asyncio.gather(*(Asked(client).ask(session, 0, mode="direct", max_tokens=8) for session in SESSIONS[:8]))
        assert {session: await home(client, session) for session in SESSIONS} == homes

    # One session fills its replica: what that cannot take, the other one does.
    burst = Asked(client)
    for number in range(RUN + WAIT + 8):
        burst.ask(SESSIONS[0], number, **LONG | {"max_tokens": 100})
    away = next(session for session in SESSIONS if homes[session] != homes[SESSIONS[0]])
    before = await answered(client, away)
    assert set(await burst.codes()) == {200}
    assert await answered(client, away) > before

    # Little work: one replica goes, and with it nothing that it has let in.
    asked, enough = Asked(client), asyncio.Event()
    each = [next(session for session in SESSIONS if homes[session] == one) for one in set(homes.values())]
    asking = [asyncio.create_task(asked.keep_asking(session, enough, **LONGER)) for session in each]
    shrank_seconds = await service.grown(1)
    enough.set()
    await asyncio.gather(*asking)
    codes = await asked.codes()
    assert set(codes) == {200}
    for tasks in asked.tasks.values():
        assert all(task.result().json()["usage"]["completion_tokens"] == LONGER["max_tokens"] for task in tasks)
    assert len({await home(client, session) for session in SESSIONS}) == 1
    print({"grew_seconds": round(grew_seconds, 1), "shrank_seconds": round(shrank_seconds, 1), "while_it_shrank": dict(codes)})


async def test_the_loss_of_a_node_is_survived(service: Service, client: httpx.AsyncClient) -> None:
    homes, _ = await grow(service, client)
    asked = Asked(client)
    each = [[session for session in SESSIONS if homes[session] == one][:3] for one in set(homes.values())]
    for number, session in enumerate(session for sessions in each for session in sessions):
        asked.ask(session, number, **LONG)
    await asyncio.sleep(1)
    service.cluster.remove_node(service.node, allow_graceful=False)
    lost = time.monotonic()
    left = await survivor(client, homes)
    kept = [session for session in asked.tasks if homes[session] == left]
    assert set(await asked.codes(*kept)) == {200}, "what the other replica let in"
    of_lost = await asked.codes(*(set(asked.tasks) - set(kept)))

    # All sessions are served by what is left, and by the node that takes its place.
    again = Asked(client)
    await asyncio.gather(*(again.ask(session, 0, mode="direct", max_tokens=8) for session in SESSIONS))
    assert set(await again.codes()) == {200}
    served_seconds = time.monotonic() - lost
    service.node = service.cluster.add_node(**NODE)
    homes, _ = await grow(service, client)
    assert len(set(homes.values())) == 2
    print({"of_the_lost_replica": dict(of_lost), "all_served_after_seconds": round(served_seconds, 1)})


async def survivor(client: httpx.AsyncClient, homes: dict[str, float]) -> float:
    """The replica whose sessions are still at it."""
    async with asyncio.timeout(60):
        while True:
            for session in SESSIONS:
                with contextlib.suppress(httpx.HTTPError):
                    if await home(client, session) == homes[session]:
                        return homes[session]
