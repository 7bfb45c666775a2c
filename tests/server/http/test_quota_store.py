"""Limits of keys in a real Redis, which comes, goes and hangs."""

import asyncio
import importlib.util
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.engine.errors import ConfigurationError
from server.http import quota_store
from server.http.errors import KeyLimitError
from server.http.keys import Key
from server.http.quota_store import SharedStore
from server.http.quotas import Quotas
from tests.conftest import free_port

needs_redis = pytest.mark.skipif(
    not (shutil.which("redis-server") and importlib.util.find_spec("redis")),
    reason="needs a Redis (apt-get install redis-server) and its client (pip install redis)",
)


@dataclass
class Redis:
    directory: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--save", "", "--dir", str(self.directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while subprocess.run(["redis-cli", "-p", str(self.port), "ping"], capture_output=True, check=False).stdout != b"PONG\n":
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.stop()


@dataclass
class Replicas:
    first: Quotas
    second: Quotas
    failures: list[int]


@pytest.fixture
async def replicas(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replicas]:
    monkeypatch.setattr(quota_store, "_PAUSE_SECONDS", 0.0)
    failures = list[int]()
    stores = [SharedStore(redis.uri, lambda: failures.append(1)) for _ in range(2)]
    yield Replicas(Quotas(stores[0]), Quotas(stores[1]), failures)
    for store in stores:
        await store.close()


def key(**limits: object) -> Key:
    return Key(name="alice", sha256="0" * 64, **limits)


async def admitted(quotas: Quotas, alice: Key) -> bool:
    try:
        await quotas.enter(alice)
    except KeyLimitError:
        return False
    return True


@needs_redis
async def test_two_replicas_admit_together_what_one_may(replicas: Replicas) -> None:
    alice = key(requests_per_minute=20)
    burst = [admitted(quotas, alice) for _ in range(20) for quotas in (replicas.first, replicas.second)]
    assert sum(await asyncio.gather(*burst)) == 20
    with pytest.raises(KeyLimitError) as error:
        await replicas.first.enter(alice)
    assert 1 <= error.value.retry_after <= 60
    assert await admitted(replicas.first, alice.model_copy(update={"name": "bob"}))
    assert not replicas.failures


@needs_redis
async def test_what_is_reserved_in_one_replica_is_not_there_in_the_other_until_it_is_settled(replicas: Replicas) -> None:
    alice = key(thinking_tokens_per_minute=300, tokens_per_minute=1000)
    first, second = await replicas.first.enter(alice), await replicas.second.enter(alice)
    assert await first.reserve(200) is None
    refused = await second.reserve(200)
    assert refused is not None
    assert refused.reason == "thinking_tokens_per_minute"
    await first.settle(10, thinking_tokens=40, generated_tokens=50)
    assert await second.reserve(200) is None, "what was not used is free again"
    await second.settle(500, thinking_tokens=290, generated_tokens=500)
    for quotas in (replicas.first, replicas.second):
        assert not await admitted(quotas, alice), "more than 1,000 tokens, of both together"


@needs_redis
async def test_reservations_at_once_never_exceed_the_limit_and_leave_nothing_behind(replicas: Replicas) -> None:
    alice = key(thinking_tokens_per_minute=1000)
    quotas = [await (replicas.first if i % 2 else replicas.second).enter(alice) for i in range(30)]
    refused = await asyncio.gather(*(quota.reserve(100) for quota in quotas))
    assert sum(one is None for one in refused) <= 10
    await asyncio.gather(*(quota.settle(1, 0, 0) for quota in quotas))
    last = await replicas.second.enter(alice)
    assert await last.reserve(1000) is None, "all is free again"


@needs_redis
async def test_without_redis_each_replica_goes_on_for_itself(
    redis: Redis, replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    alice, one = key(requests_per_minute=4, thinking_tokens_per_minute=100), replicas.first
    quota = await one.enter(alice)
    assert await quota.reserve(100) is None
    redis.stop()
    assert [await admitted(one, alice) for _ in range(4)] == [True, True, True, False], "its own one before counts"
    assert replicas.failures
    assert not one.store.is_shared
    assert sum("does not answer" in record.message for record in caplog.records) == 1
    redis.start()
    await quota.settle(1, thinking_tokens=0, generated_tokens=0)
    assert one.store.is_shared
    assert [await admitted(one, alice) for _ in range(5)] == [True] * 4 + [False], "Redis has forgotten"
    other = await replicas.second.enter(key(thinking_tokens_per_minute=100))
    assert await other.reserve(100) is None, "a reservation that Redis has forgotten is no credit there"
    again = await replicas.second.enter(key(thinking_tokens_per_minute=100))
    assert await again.reserve(1) is not None


@needs_redis
async def test_a_redis_that_hangs_holds_nobody_up(redis: Redis, replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_store, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(quota_store, "_PAUSE_SECONDS", 60.0)
    alice = key(requests_per_minute=1000)
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    started, ticks = time.monotonic(), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    assert all(await asyncio.gather(*(admitted(replicas.first, alice) for _ in range(50))))
    assert time.monotonic() - started < 3
    assert ticks > 3, "the event loop goes on"
    ticking.cancel()
    redis.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("uri", ["localhost:6379", "memcached://localhost:1", "redis+cluster://localhost:1"])
def test_what_is_no_redis_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="must be the URI of a Redis"):
        SharedStore(uri)


@needs_redis
def test_a_uri_that_is_refused_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as refused:
        SharedStore("redis://user:secret@localhost:port")
    assert "secret" not in str(refused.value)


def test_a_client_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install"):
        SharedStore("redis://localhost:6379/0")
