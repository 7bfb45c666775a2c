import time

import pytest

from server.http.errors import OverloadedError
from server.http.keys import Key
from server.http.quotas import Quotas


def key(**limits: object) -> Key:
    return Key(name="alice", sha256="0" * 64, **limits)


async def test_requests_of_a_minute() -> None:
    quotas, alice = Quotas(), key(requests_per_minute=2)
    await quotas.enter(alice)
    await quotas.enter(alice)
    with pytest.raises(OverloadedError, match="2 requests a minute") as error:
        await quotas.enter(alice)
    assert 1 <= error.value.retry_after <= 60
    assert error.value.reason == "requests_per_minute"
    await quotas.enter(key(requests_per_minute=2).model_copy(update={"name": "bob"}))


async def test_tokens_of_a_minute_are_paid_afterwards() -> None:
    quotas, alice = Quotas(), key(tokens_per_minute=100)
    await (await quotas.enter(alice)).settle(prompt_tokens=60, thinking_tokens=0, generated_tokens=50)
    with pytest.raises(OverloadedError, match="100 tokens a minute"):
        await quotas.enter(alice)


async def test_thinking_tokens_are_reserved_by_prediction_and_settled() -> None:
    quotas, alice = Quotas(), key(thinking_tokens_per_minute=300)
    first, second = await quotas.enter(alice), await quotas.enter(alice)
    assert await first.reserve(200) is None
    assert (await second.reserve(200)).reason == "thinking_tokens_per_minute"
    await first.settle(10, thinking_tokens=40, generated_tokens=50)
    assert await second.reserve(200) is None, "what was not used is free again"
    await second.settle(10, thinking_tokens=290, generated_tokens=300)
    assert await (await quotas.enter(alice)).reserve(1) is not None, "what was used beyond the prediction counts"


async def test_a_chain_longer_than_the_limit_waits_for_all_of_it() -> None:
    quotas, alice = Quotas(), key(thinking_tokens_per_minute=300)
    assert await (await quotas.enter(alice)).reserve(10_000) is None
    assert await (await quotas.enter(alice)).reserve(1) is not None


async def test_a_reservation_of_a_minute_that_is_over_is_no_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    quotas, alice, now = Quotas(), key(thinking_tokens_per_minute=300), time.time()
    first = await quotas.enter(alice)
    assert await first.reserve(300) is None
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert await (await quotas.enter(alice)).reserve(200) is None
    await first.settle(10, thinking_tokens=0, generated_tokens=0)
    assert await (await quotas.enter(alice)).reserve(200) is not None


async def test_so_many_chains_at_once() -> None:
    quotas, alice = Quotas(), key(concurrent_explicit=1)
    first = await quotas.enter(alice)
    assert await first.reserve(10) is None
    assert (await (await quotas.enter(alice)).reserve(10)).reason == "concurrent_explicit"
    await first.settle(1, 1, 1)
    assert await (await quotas.enter(alice)).reserve(10) is None


async def test_who_makes_the_server_write_much_for_little_thinks_no_more() -> None:
    quotas, alice = Quotas(), key(max_amplification=50)
    await (await quotas.enter(alice)).settle(10, 900, 1000)
    assert await (await quotas.enter(alice)).reserve(10) is None, "a single long answer is no attack"
    await (await quotas.enter(alice)).settle(10, 2900, 3000)
    assert (await (await quotas.enter(alice)).reserve(10)).reason == "max_amplification"


async def test_a_place_is_claimed_before_anything_is_read_and_given_back() -> None:
    quotas, alice = Quotas(), key(concurrent_explicit=1, thinking_tokens_per_minute=300)
    first, second = await quotas.enter(alice), await quotas.enter(alice)
    assert await first.claim() is None
    assert (await second.claim()).reason == "concurrent_explicit"
    await second.settle(0, 0, 0)
    assert await first.reserve(300) is None
    await first.settle(10, thinking_tokens=300, generated_tokens=310)
    assert (await second.claim()).reason == "thinking_tokens_per_minute", "nothing is left of the minute"
    third = await quotas.enter(key(concurrent_explicit=1))
    assert await third.claim() is None, "a claim that was refused holds no place"
