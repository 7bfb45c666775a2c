"""How fast the engine writes under its present load, and how many of its requests wait: from its own report on each step."""

import math
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

_RECENT_SECONDS = 5.0  # of work, in which what was measured loses two thirds of its weight


class Pace(StatLoggerBase):
    """A step writes a token for each request that runs, so the engine's seconds a token fall with its load: a request's own
    time per token, times the tokens of all, would count the same seconds many times."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()
        self._seconds = self._tokens = 0.0
        self._is_working = False
        self.waiting = 0
        """Engine requests in the scheduler's queue."""

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> "Pace":  # noqa: ARG002
        """As vLLM makes its loggers: one for each engine, of which we have one."""
        return self

    @property
    def seconds_per_token(self) -> float:
        """Of the engine, for one token of anybody's; NaN until it has written some."""
        return self._seconds / self._tokens if self._tokens else math.nan

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0  # noqa: ARG002
    ) -> None:  # fmt: skip
        """After each step of the engine."""
        now = self._clock()
        elapsed, self._last = now - self._last, now
        if self._is_working:  # the time since the last step was this step's; else nobody wanted anything
            kept = math.exp(-elapsed / _RECENT_SECONDS)
            self._seconds, self._tokens = self._seconds * kept + elapsed, self._tokens * kept
            self._tokens += iteration_stats.num_generation_tokens if iteration_stats else 0
        if scheduler_stats is not None:
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self._is_working = scheduler_stats.num_running_reqs + self.waiting > 0

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
