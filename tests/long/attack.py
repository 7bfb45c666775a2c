"""Prompts made to be thought about for ever, and a client beside them: `make attack`.

300 of them (SYSTEMS 3.19; 2602.00154), on 32 connections that ask for explicit thinking without end: hard questions with
distractors, texts from outside of what the base knows, and the longest predicted of many drawn at random. Once their key has
limits, once it has none.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from reasoning_net.demo.questions import FAMILIES, questions
from tests.conftest import running_server
from tests.long.attacker import CHAT, Attack, body, headers

PER_SECOND, SECONDS = 4, 40
EACH = 100  # attack prompts of a kind
LIMITS = "requests_per_minute: 240, thinking_tokens_per_minute: 2000, concurrent_explicit: 1, max_thinking_tokens: 400"
BENIGN = [q.question for q in itertools.islice(questions(61, "test", steps=(1, 4)), 64)]


async def predicted_tokens(client: httpx.AsyncClient, question: str) -> float:
    answer = await client.post("/v1/route", json=body(question), headers=headers("open"))
    return float(answer.json()["route"]["scores"]["tokens"])


async def attacks(client: httpx.AsyncClient) -> list[str]:
    rng = random.Random(5)
    hard = [q.question for q in itertools.islice(questions(62, "test", steps=(8, 8), families=FAMILIES), 8 * EACH)]
    words = sorted({word for text in hard for word in text.split()})
    strange = [" ".join(rng.choices(words, k=rng.randint(5, 120))) for _ in range(EACH)]
    pairs = (rng.sample(hard, 2) for _ in range(4 * EACH))
    drawn = [". ".join(part for text in pair for part in text.split(". ")[:-1]) + ". How many now?" for pair in pairs]
    lengths = [await predicted_tokens(client, text) for text in drawn]
    longest = [text for _, text in sorted(zip(lengths, drawn, strict=True), reverse=True)][:EACH]
    return [*sorted(hard, key=len)[-EACH:], *strange, *longest]


@contextlib.asynccontextmanager
async def attacked(url: str, key: str, prompts: Path) -> AsyncIterator[Attack]:
    """While it is; afterwards what came of it stands there."""
    found = Attack()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.long.attacker", url, key, str(prompts),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    yield found
    output, _ = await process.communicate(b"")
    for name, value in json.loads(output).items():
        setattr(found, name, value)


async def first_token(client: httpx.AsyncClient, question: str, codes: Counter[int]) -> float | None:
    started, seconds = time.perf_counter(), None
    asked = body(question, mode="auto", stream=True, max_tokens=400)
    async with client.stream("POST", CHAT, json=asked, headers=headers("open")) as response:
        codes[response.status_code] += 1
        if response.status_code != 200:
            return None
        async for line in response.aiter_lines():
            if seconds is None and any(
                f'"{name}":"' in line and f'"{name}":""' not in line for name in ("content", "reasoning")
            ):
                seconds = time.perf_counter() - started
    return seconds


async def benign(client: httpx.AsyncClient) -> dict[str, Any]:
    """A client at a steady rate: its seconds to the first token."""
    codes = Counter[int]()
    tasks = []
    for number in range(PER_SECOND * SECONDS):
        tasks.append(asyncio.create_task(first_token(client, BENIGN[number % len(BENIGN)], codes)))
        await asyncio.sleep(1 / PER_SECOND)
    seconds = [value for value in await asyncio.gather(*tasks) if value is not None]
    found = {"codes": dict(codes), "p50": None, "p95": None}
    if len(seconds) > 1:
        found |= {"p50": round(statistics.median(seconds), 4), "p95": round(statistics.quantiles(seconds, n=20)[-1], 4)}
    return found


async def test_a_client_beside_an_attack(tmp_path: Path) -> None:
    limits = {"open": "", "free": "", "limited": LIMITS}
    keys = (f"- {{name: {n}, sha256: '{hashlib.sha256(n.encode()).hexdigest()}', {limit}}}" for n, limit in limits.items())
    (tmp_path / "keys.yaml").write_text("\n".join(("keys:", *keys)) + "\n")
    flags = ("--max-num-seqs", "24", "--max-num-queued-reqs", "24", "--api-keys-file", str(tmp_path / "keys.yaml"))
    with running_server(tmp_path / "log.txt", *flags) as url:
        limits_of_http = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits_of_http) as client:
            prompts = await attacks(client)
            assert len(prompts) == 3 * EACH
            await benign(client)  # warm
            figures: dict[str, Any] = {"quiet": await benign(client)}
            (tmp_path / "prompts.json").write_text(json.dumps(prompts))
            for key in ("limited", "free"):
                async with attacked(url, key, tmp_path / "prompts.json") as found:
                    figures[key] = await benign(client)
                figures[key] |= {
                    "attack": found.codes, "generated": found.generated,
                    "amplification": round(found.generated / max(1, found.prompt_tokens), 2),
                }  # fmt: skip
                if len(found.predicted) > 2:
                    figures[key]["correlation"] = round(statistics.correlation(found.predicted, found.real), 3)
                figures[key]["p95 / quiet"] = round((figures[key]["p95"] or float("inf")) / figures["quiet"]["p95"], 2)
    print(json.dumps(figures, indent=2))
    assert figures["limited"]["codes"] == {200: PER_SECOND * SECONDS}, "nobody else is refused"
    assert figures["limited"]["p95 / quiet"] <= 1.2, "on two cores, which clients and server share"
