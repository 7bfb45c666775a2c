"""Where limits of keys are counted: in this process, or for all replicas in Redis.

Redis is asked from the event loop and never holds it up. Where it is away, or slow, this process goes on with what it has
counted itself: a limit is then one of each replica, and no request fails for it.
"""

import asyncio
import importlib.util
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError as LimitsError
from limits.storage import MemoryStorage, storage_from_string

from server.engine.errors import ConfigurationError

logger = logging.getLogger("vllm.latentserve.quotas")
_SCHEMES = ("redis://", "rediss://", "redis+unix://")
_PATIENCE_SECONDS = 1.0  # for one answer
_PREFIX = "latentserve"
_PAUSE_SECONDS = 2.0  # after a failure, before it is asked again


class QuotaStore(Protocol):
    """Counters with names, each of which ends so many seconds after it was begun."""

    is_shared: bool
    """Whether what is counted now is counted for all replicas."""

    async def add(self, name: str, seconds: int, amount: int) -> int:
        """What the counter is then."""

    async def get(self, name: str) -> int: ...

    async def ends_at(self, name: str) -> float:
        """On the clock of `time.time`."""

    async def close(self) -> None: ...


class LocalStore:
    """Never waits, so whoever looks and then counts is not disturbed in between."""

    is_shared = False

    def __init__(self) -> None:
        self._storage = MemoryStorage()

    async def add(self, name: str, seconds: int, amount: int) -> int:
        return int(self._storage.incr(name, seconds, amount))

    async def get(self, name: str) -> int:
        return int(self._storage.get(name))

    async def ends_at(self, name: str) -> float:
        return float(self._storage.get_expiry(name))

    async def close(self) -> None:
        """There is nothing to close."""


class SharedStore:
    """All is counted here, too, for when Redis is away."""

    def __init__(self, uri: str, failed: Callable[[], None] = lambda: None) -> None:
        """`failed` is told each answer that did not come. Raises `ConfigurationError`; whether Redis is there shows later."""
        self._remote, self._local, self._failed = _storage(uri), LocalStore(), failed
        errors = self._remote.base_exceptions
        theirs = errors if isinstance(errors, tuple) else (errors,)
        self._errors: tuple[type[Exception], ...] = (TimeoutError, OSError, *theirs)
        self.is_shared, self._ask_from = True, 0.0

    async def add(self, name: str, seconds: int, amount: int) -> int:
        own = await self._local.add(name, seconds, amount)
        return own if (found := await self._asked(lambda: self._remote.incr(name, seconds, amount))) is None else int(found)

    async def get(self, name: str) -> int:
        found = await self._asked(lambda: self._remote.get(name))
        return await self._local.get(name) if found is None else int(found)

    async def ends_at(self, name: str) -> float:
        found = await self._asked(lambda: self._remote.get_expiry(name))
        return await self._local.ends_at(name) if found is None else float(found)

    async def close(self) -> None:
        client: Any = self._remote.bridge  # of a client that need not be installed
        await client.get_connection().aclose()

    async def _asked(self, ask: Callable[[], Awaitable[float]]) -> float | None:
        """What Redis says; None where it is away."""
        now = time.monotonic()
        if not self.is_shared and now < self._ask_from:
            return None
        self._ask_from = now + _PAUSE_SECONDS  # while it is away one request at a time finds out whether it still is
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                found = await ask()
        except self._errors as error:
            self._failed()
            if self.is_shared:
                logger.warning("The quota store does not answer (%r): each replica counts for itself.", error)
            self.is_shared = False
            return None
        if not self.is_shared:
            logger.info("The quota store answers again.")
        self.is_shared = True
        return found


def _storage(uri: str) -> RedisStorage:
    if not uri.startswith(_SCHEMES):
        raise ConfigurationError(f"--quota-store must be the URI of a Redis: {', '.join(_SCHEMES)}…")
    if importlib.util.find_spec("redis") is None:
        raise ConfigurationError(
            "--quota-store needs a client of Redis, which is not installed: pip install 'redis>=6,<8' (our extra `redis`)."
        )
    try:
        storage = storage_from_string(
            f"async+{uri}", implementation="redispy", socket_connect_timeout=_PATIENCE_SECONDS, key_prefix=_PREFIX
        )
    except (LimitsError, ValueError) as error:
        raise ConfigurationError("--quota-store is no URI that a client of Redis understands.") from error  # it has a password
    assert isinstance(storage, RedisStorage)
    return storage
