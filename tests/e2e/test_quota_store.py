"""A server that counts limits of keys in a Redis, beside another replica that does."""

import asyncio
import time
from pathlib import Path

import httpx

from reasoning_net.demo.questions import Question
from server.http.keys import Key
from server.http.quota_store import SharedStore
from server.http.quotas import Quotas
from tests.conftest import running_server
from tests.e2e.test_limits import lines
from tests.e2e.test_modes import metric
from tests.server.http.test_quota_store import Redis, needs_redis, redis

__all__ = ["redis"]
THINKING = 3000


@needs_redis
async def test_what_another_replica_has_used_is_used_and_a_redis_that_dies_fails_nobody(
    redis: Redis, tmp_path: Path, asked: list[Question]
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(lines({"alice": f"thinking_tokens_per_minute: {THINKING}"}))
    messages = [{"role": "user", "content": asked[0].question}]
    body = {"model": "demo", "mode": "explicit", "temperature": 0, "messages": messages}
    flags = ("--api-keys-file", str(file), "--quota-store", redis.uri)
    with running_server(tmp_path / "log.txt", *flags) as url:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer alice"}, timeout=120) as client:
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            thought = answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"]
            other = SharedStore(redis.uri)
            alice = Key(name="alice", sha256="0" * 64, thinking_tokens_per_minute=THINKING)
            quota = await Quotas(other).enter(alice)
            deadline = time.monotonic() + 10  # the server settles when the answer has left; a chain's tags count, too
            while (refusal := await quota.reserve(THINKING - thought - 5)) is not None and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            assert refusal is None, "what the server reserved has become what the answer came to"
            assert await (await Quotas(other).enter(alice)).reserve(10) is not None, "and nothing less"
            await other.close()
            refused = await client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.headers["X-Reject-Reason"]) == (429, "thinking_tokens_per_minute")
            assert metric(url, "latentserve_quota_store_up") == 1
            redis.stop()
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            assert metric(url, "latentserve_quota_store_up") == 0
            assert metric(url, "latentserve_quota_store_failures_total") >= 1
    assert "each replica counts for itself" in (tmp_path / "log.txt").read_text()
