"""Speed over HTTP, as ratios measured in one run: each mode alone, and each at a fixed concurrency.

    latentserve bench --url http://127.0.0.1:8000 [--compare http://127.0.0.1:8001]

Rounds alternate between the modes (and the servers), so that a noisy machine treats all alike.
"""

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from tqdm import tqdm

from reasoning_net.evaluate import ask
from reasoning_net.tasks import DemoTask

MODES = ("direct", "latent", "explicit")


@dataclass(frozen=True, slots=True)
class BenchConfig:
    url: str
    compare: str | None = None
    """A second server without our modes (plain `vllm serve`): it answers as it does, compared with explicit mode."""
    requests: int = 192
    alone_requests: int = 24
    concurrency: int = 64
    rounds: int = 3
    seed: int = 1


@dataclass(slots=True)
class Timing:
    alone_seconds: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)  # requests per second, one entry a round

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.alone_seconds) * 1000

    @property
    def requests_per_second(self) -> float:
        return statistics.median(self.throughput)


async def main(config: BenchConfig) -> dict[str, Timing]:
    """Run all rounds; the key is the mode, or `compared`."""
    questions = DemoTask().examples(config.seed, "test")
    timings = {name: Timing() for name in (*MODES, *(("compared",) if config.compare else ()))}
    # Idle connections are given up before the server does, or a request could meet the server closing its connection.
    limits = httpx.Limits(max_connections=config.concurrency, keepalive_expiry=2)
    async with (
        httpx.AsyncClient(base_url=config.url, timeout=600, limits=limits) as ours,
        httpx.AsyncClient(base_url=config.compare or config.url, timeout=600, limits=limits) as other,
    ):
        clients = {name: other if name == "compared" else ours for name in timings}
        models = {name: (await client.get("/v1/models")).json()["data"][0]["id"] for name, client in clients.items()}
        total = config.rounds * len(timings) * (config.requests + config.alone_requests)
        with tqdm(total=total, unit="request") as progress:

            async def send(name: str, messages: list[dict[str, str]], gate: asyncio.Semaphore) -> float:
                body: dict[str, Any] = {"model": models[name], "messages": messages, "temperature": 0}
                if name != "compared":
                    body["mode"] = name
                async with gate:
                    started = time.perf_counter()
                    (await ask(clients[name], body)).raise_for_status()
                    progress.update()
                    return time.perf_counter() - started

            for round_ in range(config.rounds):
                # Fresh questions each round, the same for every mode: nothing but X itself is in a prefix cache.
                batch = [example.messages for example in itertools.islice(questions, config.requests)]
                names = list(timings)[round_ % len(timings) :] + list(timings)[: round_ % len(timings)]
                for name in names:
                    single = asyncio.Semaphore(1)
                    timings[name].alone_seconds += [
                        await send(name, m, single) for m in _tagged(batch, name, round_)[: config.alone_requests]
                    ]
                    many = asyncio.Semaphore(config.concurrency)
                    started = time.perf_counter()
                    await asyncio.gather(*(send(name, m, many) for m in _tagged(batch, f"{name} all", round_)))
                    timings[name].throughput.append(len(batch) / (time.perf_counter() - started))
    return timings


def _tagged(batch: list[list[dict[str, str]]], name: str, round_: int) -> list[list[dict[str, str]]]:
    """The same questions after a system prompt of their own: no run finds another's prompts in the prefix cache."""
    return [[{"role": "system", "content": f"Be brief. {name} {round_}"}, *messages] for messages in batch]


def markdown(timings: dict[str, Timing]) -> str:
    """The figures, and the ratios that matter."""
    lines = ["| mode | alone, p50 ms | requests/s at concurrency |", "|---|---|---|"]
    lines += [f"| {name} | {t.p50_ms:.1f} | {t.requests_per_second:.1f} |" for name, t in timings.items()]
    direct, latent, explicit = (timings[name] for name in MODES)
    ratios = {
        "latent ÷ direct, time alone": latent.p50_ms / direct.p50_ms,
        "explicit ÷ latent, time alone": explicit.p50_ms / latent.p50_ms,
        "latent ÷ explicit, throughput": latent.requests_per_second / explicit.requests_per_second,
        "latent ÷ direct, throughput": latent.requests_per_second / direct.requests_per_second,
    }
    if "compared" in timings:
        ratios["explicit ÷ compared server, throughput"] = (
            explicit.requests_per_second / timings["compared"].requests_per_second
        )
    return "\n".join([*lines, "", "| ratio | |", "|---|---|", *(f"| {name} | {value:.2f} |" for name, value in ratios.items())])
