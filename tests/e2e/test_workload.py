"""What a server says is still to be written, as an autoscaler reads it."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from reasoning_net.demo.questions import Question
from tests.e2e.test_limits import until

TOKENS, SECONDS = "latentserve_expected_tokens_outstanding", "latentserve_expected_seconds_outstanding"


@pytest.fixture
async def http(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server, timeout=120) as client:
        yield client


async def outstanding(http: httpx.AsyncClient) -> tuple[float, float]:
    """(tokens, seconds)."""
    lines = (await http.get("/metrics")).text.splitlines()
    tokens, seconds = (next(line for line in lines if line.startswith(f"{name} ")) for name in (TOKENS, SECONDS))
    return float(tokens.split()[1]), float(seconds.split()[1])


def ask(http: httpx.AsyncClient, question: Question, **body: Any) -> "asyncio.Task[httpx.Response]":
    body = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": question.question}]} | body
    return asyncio.ensure_future(http.post("/v1/chat/completions", json=body))


async def peak(http: httpx.AsyncClient, asked: list[Question], **body: Any) -> tuple[float, float]:
    """The most of either while these questions are answered, all at once; they are given up before their end. A look may come
    too late for answers of six tokens: then they are asked again."""
    seen = [(0.0, 0.0)]
    for _ in range(5):
        if max(seen) > (0, 0):
            break
        running = [ask(http, question, **body) for question in asked]
        seen = [await outstanding(http) for _ in range(20)]
        for one in running:
            one.cancel()
    await until(str(http.base_url).rstrip("/"), TOKENS, lambda value: value == 0)
    await until(str(http.base_url).rstrip("/"), "vllm:num_requests_running", lambda value: value == 0)
    return max(tokens for tokens, _ in seen), max(seconds for _, seconds in seen)


async def test_chains_weigh_more_than_latents_and_what_ends_weighs_nothing(
    http: httpx.AsyncClient, asked: list[Question]
) -> None:
    assert await outstanding(http) == (0, 0)
    for stream in (False, True):
        latent, latent_seconds = await peak(http, asked[:12], mode="latent", stream=stream)
        explicit, explicit_seconds = await peak(http, asked[:12], mode="explicit", stream=stream)
        assert 12 * 50 < explicit < 12 * 1000  # the first are half written when the last come
        assert latent < explicit / 8
        assert 0 < latent_seconds < explicit_seconds < math.inf
    few, _ = await peak(http, asked[:12], mode="explicit", max_tokens=60)
    assert 0 < few <= 12 * 60


async def test_a_whole_answer_falls_while_it_is_written(http: httpx.AsyncClient, asked: list[Question]) -> None:
    answer, seen = ask(http, asked[12], mode="explicit", max_tokens=600, ignore_eos=True), []
    while not answer.done():
        tokens, _ = await outstanding(http)
        seen.append(tokens)
    assert any(0 < tokens < max(seen) / 2 for tokens in seen), seen
    refused = await ask(http, asked[12], mode="often")
    assert refused.status_code == 400
    assert await outstanding(http) == (0, 0)
