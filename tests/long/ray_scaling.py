"""First tokens where replicas come and go with expected seconds of work, and where with requests in flight: `make ray-scaling`.

Two nodes on two cores, which the load's client shares: figures of beginnings, beside `deploy.simulate`'s.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from reasoning_net.tables import table
from tests.long.balancers import ASKED, CHAT, LONG
from tests.long.ray_cluster import Service, by_expected_work, serving

# Without a policy Serve follows requests in flight.
SIGNALS: dict[str, Mapping[str, Any]] = {
    "expected seconds, 3": by_expected_work(3),
    "expected seconds, 6": by_expected_work(6),
    "requests in flight, 2": {"policy": None, "target_ongoing_requests": 2},
    "requests in flight, 4": {"policy": None, "target_ongoing_requests": 4},
    "requests in flight, 8": {"policy": None, "target_ongoing_requests": 8},
}
PHASES = ((20, 2.0, 0.0), (50, 2.0, 0.8), (30, 2.0, 0.0), (50, 16.0, 0.0), (20, 2.0, 0.0))
"""(seconds, requests a second, share that thinks in text): rest, chains, rest, many latents, rest."""
LATE_SECONDS = 2.0


@dataclass(frozen=True)
class Arrival:
    at: float
    mode: str
    number: int


def arrivals(seed: int = 0) -> Iterator[Arrival]:
    rng, begins, number = random.Random(seed), 0.0, 0
    for seconds, rate, explicit in PHASES:
        at = begins + rng.expovariate(rate)
        while at < begins + seconds:
            yield Arrival(at, "explicit" if rng.random() < explicit else "latent", number)
            at, number = at + rng.expovariate(rate), number + 1
        begins += seconds


async def first_token(client: httpx.AsyncClient, arrival: Arrival) -> tuple[str, float]:
    """Seconds until the first; infinite where there was none."""
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": ASKED[arrival.number % len(ASKED)]}]}
    body |= LONG if arrival.mode == "explicit" else {"mode": "latent", "max_tokens": 24}
    began = time.monotonic()
    async with client.stream("POST", CHAT, json=body, headers={"X-Session-ID": f"session-{arrival.number % 64}"}) as response:
        found = float("inf")
        async for line in response.aiter_lines():
            choices = json.loads(line[6:]).get("choices") if line.startswith("data: {") else None
            if choices and found == float("inf") and any(choices[0]["delta"].get(k) for k in ("content", "reasoning")):
                found = time.monotonic() - began
        return arrival.mode, found


async def load(service: Service) -> dict[str, Any]:
    began, replicas = time.monotonic(), list[int]()

    async def watch() -> None:
        while True:
            replicas.append(await asyncio.to_thread(service.replicas))
            await asyncio.sleep(1)

    async with httpx.AsyncClient(base_url=service.url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        watching, tasks = asyncio.create_task(watch()), list[asyncio.Task[tuple[str, float]]]()
        for arrival in arrivals():
            await asyncio.sleep(max(0.0, began + arrival.at - time.monotonic()))
            tasks.append(asyncio.create_task(first_token(client, arrival)))
        found = await asyncio.gather(*tasks)
        watching.cancel()
    firsts = {mode: np.array([one for of, one in found if mode in (of, "all")]) for mode in ("all", "latent", "explicit")}
    return {
        **{f"{mode} p95": round(float(np.percentile(of, 95)), 2) for mode, of in firsts.items()},
        "late": f"{np.mean(firsts['all'] > LATE_SECONDS):.1%}",
        "replica seconds": round(float(np.mean(replicas)) * sum(seconds for seconds, *_ in PHASES)),
        "most": max(replicas),
        "requests": len(found),
    }


async def test_first_tokens_by_what_replicas_follow(tmp_path: Path) -> None:
    rows = []
    for name, scaling in SIGNALS.items():
        directory = tmp_path / str(len(rows))
        directory.mkdir()
        with serving(directory, scaling) as service:
            rows.append({"replicas follow": name} | await load(service))
        assert rows[-1]["most"] <= 2
        print(table(list(rows[0]), (row.values() for row in rows)), flush=True)
