"""What each key may use: requests, tokens and thinking tokens a minute, answers in text at once, amplification.

A chain's cost is known when it has been written, and then it is too late. So thinking tokens are reserved by what the probe
predicts, before anything is written, and settled with what they came to (SYSTEMS: defence against overthinking attacks,
2602.00154, whose attackers use the same predictor).
"""

import math
import time
from collections import Counter

from limits import RateLimitItemPerMinute

from server.http.errors import KeyLimitError
from server.http.keys import Key
from server.http.quota_store import LocalStore, QuotaStore

_MINUTE, _HOUR = 60, 3600
_THINKING = "thinking_tokens_per_minute"
_ENOUGH = 2000  # generated tokens of an hour, below which nobody is called an amplifier


class Quotas:
    """Counters of all keys: in this process, or in a store for all replicas. Answers at once are counted here in any case, so
    with several replicas that limit is one of each."""

    def __init__(self, store: QuotaStore | None = None) -> None:
        self.store = store or LocalStore()
        self._thinking: Counter[str] = Counter()

    async def enter(self, key: Key) -> "Quota":
        """A request of this key begins. Raises `KeyLimitError` where a limit is reached, with which and when it frees."""
        quota = Quota(key, self.store, self._thinking)
        await quota.enter()
        return quota


class Quota:
    """Of one request."""

    def __init__(self, key: Key, store: QuotaStore, thinking: "Counter[str]") -> None:
        self.key, self._store, self._thinking = key, store, thinking
        self._reserved, self._resets, self._is_shared = 0, 0.0, False
        self._is_thinking = False

    async def enter(self) -> None:
        if (most := self.key.requests_per_minute) is not None:
            if await self._is_used_up("requests_per_minute", most):
                raise await self._exceeded("requests_per_minute", most)
            await self._take("requests_per_minute", most, 1)  # also one that the limit of tokens refuses
        if (most := self.key.tokens_per_minute) is not None and await self._is_used_up("tokens_per_minute", most):
            raise await self._exceeded("tokens_per_minute", most)

    async def claim(self) -> KeyLimitError | None:
        """A place for an answer that is thought through in text, before anything is read; else what stands in its way."""
        key, most = self.key, self.key.thinking_tokens_per_minute
        if self._is_thinking:
            return None
        if key.concurrent_explicit is not None and self._thinking[key.name] >= key.concurrent_explicit:
            return KeyLimitError(
                f"{self._thinking[key.name]} answers of this key are being thought through in text, of at most "
                f"{key.concurrent_explicit}.", "concurrent_explicit", 1,
            )  # fmt: skip
        self._is_thinking = True  # before others are asked, who may be far away
        self._thinking[key.name] += 1
        reason = None
        if key.max_amplification is not None and await self._amplification() > key.max_amplification:
            reason = KeyLimitError(
                f"This key's answers were more than {key.max_amplification:g} times as long as its prompts in the last hour.",
                "max_amplification", await self._seconds_left("generated", _HOUR),
            )  # fmt: skip
        elif most is not None and await self._is_used_up(_THINKING, most):
            reason = await self._exceeded(_THINKING, most)
        if reason is not None:
            self._leave()
        return reason

    async def reserve(self, tokens: float) -> KeyLimitError | None:
        """So many tokens, as they are predicted, for an answer that is thought through in text; else what stands in its way."""
        if (reason := await self.claim()) is not None:
            return reason
        most = self.key.thinking_tokens_per_minute
        if most is not None and not self._reserved:
            cost = min(most, max(1, math.ceil(tokens)))  # what is longer than the whole limit waits for all of it
            try:
                await self._take(_THINKING, most, cost)
            except KeyLimitError as error:
                self._leave()
                return error
            self._reserved, self._resets = cost, await self._reset(_THINKING, most)
            self._is_shared = self._store.is_shared
        return None

    def _leave(self) -> None:
        if self._is_thinking:
            self._thinking[self.key.name] -= 1
            self._is_thinking = False

    async def settle(self, prompt_tokens: int, thinking_tokens: int, generated_tokens: int) -> None:
        """The request has ended: what was reserved becomes what it came to."""
        self._leave()
        if self._reserved and (most := self.key.thinking_tokens_per_minute) is not None:
            rest, self._reserved = thinking_tokens - self._reserved, 0
            # What was reserved in a minute that is over, or in another store, is no credit for this one.
            is_same_minute = abs(await self._reset(_THINKING, most) - self._resets) < _MINUTE / 2
            is_credit = is_same_minute and self._is_shared == self._store.is_shared
            await self._count(_THINKING, most, rest if is_credit else max(0, rest))
        if self.key.tokens_per_minute is not None:
            await self._count("tokens_per_minute", self.key.tokens_per_minute, prompt_tokens + generated_tokens)
        if self.key.max_amplification is not None:
            await self._store.add(f"{self.key.name}/prompt", _HOUR, prompt_tokens)
            await self._store.add(f"{self.key.name}/generated", _HOUR, generated_tokens)

    async def _take(self, name: str, most: int, cost: int) -> None:
        """Count first and look then: another replica may do the same. Raises `KeyLimitError` where it is too much."""
        if await self._count(name, most, cost) > most:
            if (left := await self._count(name, most, -cost)) < 0:
                await self._count(name, most, -left)  # the minute was over in between
            raise await self._exceeded(name, most)

    async def _is_used_up(self, name: str, most: int) -> bool:
        return await self._store.get(RateLimitItemPerMinute(most).key_for(self.key.name, name)) >= most

    async def _count(self, name: str, most: int, tokens: int) -> int:
        """What it comes to."""
        item = RateLimitItemPerMinute(most)
        return await self._store.add(item.key_for(self.key.name, name), item.get_expiry(), tokens) if tokens else 0

    async def _amplification(self) -> float:
        generated = await self._store.get(f"{self.key.name}/generated")
        if generated < _ENOUGH:
            return 0.0
        return generated / max(1, await self._store.get(f"{self.key.name}/prompt"))

    async def _exceeded(self, name: str, most: int) -> KeyLimitError:
        seconds = max(1, math.ceil(await self._reset(name, most) - time.time()))
        what = name.replace("_", " ").replace(" per minute", " a minute")
        return KeyLimitError(f"This key may use {most} {what}. The limit frees in {seconds} seconds.", name, seconds)

    async def _reset(self, name: str, most: int) -> float:
        return await self._store.ends_at(RateLimitItemPerMinute(most).key_for(self.key.name, name))

    async def _seconds_left(self, counter: str, most: int) -> int:
        ends_at = await self._store.ends_at(f"{self.key.name}/{counter}")
        return max(1, min(most, math.ceil(ends_at - time.time())))
