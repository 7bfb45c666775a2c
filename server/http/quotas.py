"""What each key may use: requests, tokens and thinking tokens a minute, answers in text at once, amplification.

A chain's cost is known when it has been written, and then it is too late. So thinking tokens are reserved by what the probe
predicts, before anything is written, and settled with what they came to (SYSTEMS: defence against overthinking attacks,
2602.00154, whose attackers use the same predictor).
"""

import math
import time
from collections import Counter

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from server.http.errors import KeyLimitError
from server.http.keys import Key

_HOUR = 3600
_THINKING = "thinking_tokens_per_minute"
_ENOUGH = 2000  # generated tokens of an hour, below which nobody is called an amplifier


class Quotas:
    """Counters of all keys, in this process: with several replicas each has its own, so divide the limits."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._thinking: Counter[str] = Counter()

    def enter(self, key: Key) -> "Quota":
        """A request of this key begins. Raises `KeyLimitError` where a limit is reached, with which and when it frees."""
        quota = Quota(key, self._limiter, self._thinking)
        quota.enter()
        return quota


class Quota:
    """Of one request."""

    def __init__(self, key: Key, limiter: FixedWindowRateLimiter, thinking: "Counter[str]") -> None:
        self.key, self._limiter, self._thinking = key, limiter, thinking
        self._reserved, self._resets = 0, 0.0
        self._is_thinking = False

    def enter(self) -> None:
        if (most := self.key.requests_per_minute) is not None:
            self._check("requests_per_minute", most)
            self._count("requests_per_minute", most, 1)  # also one that the limit of tokens refuses
        if (most := self.key.tokens_per_minute) is not None:
            self._check("tokens_per_minute", most)

    def _check(self, name: str, most: int) -> None:
        if not self._limiter.test(RateLimitItemPerMinute(most), self.key.name, name):
            raise self._exceeded(name, most)

    def claim(self) -> KeyLimitError | None:
        """A place for an answer that is thought through in text, before anything is read; else what stands in its way."""
        key, most = self.key, self.key.thinking_tokens_per_minute
        if self._is_thinking:
            return None
        if key.concurrent_explicit is not None and self._thinking[key.name] >= key.concurrent_explicit:
            return KeyLimitError(
                f"{self._thinking[key.name]} answers of this key are being thought through in text, of at most "
                f"{key.concurrent_explicit}.", "concurrent_explicit", 1,
            )  # fmt: skip
        if key.max_amplification is not None and self._amplification() > key.max_amplification:
            return KeyLimitError(
                f"This key's answers were more than {key.max_amplification:g} times as long as its prompts in the last hour.",
                "max_amplification", self._seconds_left("generated", _HOUR),
            )  # fmt: skip
        if most is not None and not self._limiter.test(RateLimitItemPerMinute(most), key.name, _THINKING):
            return self._exceeded(_THINKING, most)
        self._is_thinking = True
        self._thinking[key.name] += 1
        return None

    def reserve(self, tokens: float) -> KeyLimitError | None:
        """So many tokens, as they are predicted, for an answer that is thought through in text; else what stands in its way."""
        if (reason := self.claim()) is not None:
            return reason
        most = self.key.thinking_tokens_per_minute
        if most is not None and not self._reserved:
            cost = min(most, max(1, math.ceil(tokens)))  # what is longer than the whole limit waits for all of it
            if not self._limiter.test(RateLimitItemPerMinute(most), self.key.name, _THINKING, cost=cost):
                self._leave()
                return self._exceeded(_THINKING, most)
            self._count(_THINKING, most, cost)
            self._reserved, self._resets = cost, self._reset(_THINKING, most)
        return None

    def _leave(self) -> None:
        if self._is_thinking:
            self._thinking[self.key.name] -= 1
            self._is_thinking = False

    def settle(self, prompt_tokens: int, thinking_tokens: int, generated_tokens: int) -> None:
        """The request has ended: what was reserved becomes what it came to."""
        if self._reserved and (most := self.key.thinking_tokens_per_minute) is not None:
            is_same_minute = self._reset(_THINKING, most) == self._resets
            rest = thinking_tokens - self._reserved
            # What was reserved in a minute that is over is no credit for this one.
            self._count(_THINKING, most, rest if is_same_minute else max(0, rest))
        if self.key.tokens_per_minute is not None:
            self._count("tokens_per_minute", self.key.tokens_per_minute, prompt_tokens + generated_tokens)
        if self.key.max_amplification is not None:
            storage = self._limiter.storage
            storage.incr(f"{self.key.name}/prompt", _HOUR, prompt_tokens)
            storage.incr(f"{self.key.name}/generated", _HOUR, generated_tokens)
        self._reserved = 0
        self._leave()

    def _count(self, name: str, most: int, tokens: int) -> None:
        item = RateLimitItemPerMinute(most)
        if tokens:
            self._limiter.storage.incr(item.key_for(self.key.name, name), item.get_expiry(), tokens)

    def _amplification(self) -> float:
        get = self._limiter.storage.get
        generated = get(f"{self.key.name}/generated")
        return generated / max(1, get(f"{self.key.name}/prompt")) if generated >= _ENOUGH else 0.0

    def _exceeded(self, name: str, most: int) -> KeyLimitError:
        seconds = max(1, math.ceil(self._reset(name, most) - time.time()))
        what = name.replace("_", " ").replace(" per minute", " a minute")
        return KeyLimitError(f"This key may use {most} {what}. The limit frees in {seconds} seconds.", name, seconds)

    def _reset(self, name: str, most: int) -> float:
        return self._limiter.get_window_stats(RateLimitItemPerMinute(most), self.key.name, name).reset_time

    def _seconds_left(self, counter: str, most: int) -> int:
        return max(1, min(most, math.ceil(self._limiter.storage.get_expiry(f"{self.key.name}/{counter}") - time.time())))
