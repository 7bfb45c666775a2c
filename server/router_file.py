"""One router for all replicas: a document that each of them watches, in a file or behind a URL.

A document that cannot be used changes nothing: what was in force stays, here as in the other replicas.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx

from router.router import Router
from server.engine.errors import ConfigurationError
from server.http.errors import BadRequestError
from server.http.router_document import switch

logger = logging.getLogger("vllm.latentserve.router")
_MAX_BYTES = 2**16
_TIMEOUT = httpx.Timeout(5)


class UnreachableError(Exception):
    """There is no document to be had, with why."""


class _Source(Protocol):
    async def read(self) -> bytes | None:
        """The document; None where it is that of the last time. Raises `UnreachableError`."""


class _File:
    """By modification time, size and inode: a file that is replaced, or a link that is turned (ConfigMaps), is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    async def read(self) -> bytes | None:
        return await asyncio.to_thread(self._read)  # it may lie on another machine

    def _read(self) -> bytes | None:
        try:
            state = self._path.stat()
            found = (state.st_mtime_ns, state.st_size, state.st_ino)
            if found == self._seen:
                return None
            with self._path.open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise UnreachableError(error.strerror or str(error)) from error
        self._seen = found
        return raw


class _Url:
    """By ETag or time of modification where the server says one, else by its bytes."""

    def __init__(self, url: str) -> None:
        self._url, self._seen, self._headers = url, b"", dict[str, str]()

    async def read(self) -> bytes | None:
        try:
            async with (
                httpx.AsyncClient(timeout=_TIMEOUT) as client,
                client.stream("GET", self._url, headers=self._headers) as response,
            ):
                if response.status_code == httpx.codes.NOT_MODIFIED:
                    return None
                if response.status_code != httpx.codes.OK:
                    raise UnreachableError(f"status {response.status_code}")
                raw = b""
                async for part in response.aiter_bytes():
                    raw += part
                    if len(raw) > _MAX_BYTES:
                        break
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise UnreachableError(str(error) or repr(error)) from error
        conditions = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
        self._headers = {ask: response.headers[said] for said, ask in conditions.items() if said in response.headers}
        is_new, self._seen = raw != self._seen, raw
        return raw if is_new else None


class RouterFile:
    """Puts the document in force, and what it is changed to."""

    def __init__(self, source: str, router: Router, failed: Callable[[str], None] = lambda _: None) -> None:
        """`failed` is told each failure: refused, or unreachable."""
        is_url = source.startswith(("http://", "https://"))
        self.name, self._source = public_name(source), _Url(source) if is_url else _File(Path(source))
        self._router, self._failed = router, failed
        self._refused = self._unreachable = False

    @property
    def is_in_force(self) -> bool:
        """Whether the document could be read the last time, and is what decides."""
        return not (self._refused or self._unreachable)

    async def load(self) -> None:
        """Before the first request. Raises `ConfigurationError`."""
        try:
            raw = await self._source.read()
            assert raw is not None, "there was no last time"
            self._put(raw)
        except (UnreachableError, BadRequestError) as error:
            raise ConfigurationError(f"--router-file {self.name} cannot be used: {error}") from error

    async def watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.refresh()

    async def refresh(self) -> None:
        try:
            raw = await self._source.read()
        except UnreachableError as error:
            self._failed("unreachable")
            if not self._unreachable:
                logger.warning("The router file %s cannot be read: %s. What was in force stays.", self.name, error)
            self._unreachable = True
            return
        if self._unreachable:
            self._unreachable = False
            logger.info("The router file %s can be read again.", self.name)
        if raw is None:
            return
        try:
            self._put(raw)
            self._refused = False
            logger.info("Router: policy %s, version %s, from %s.", self._router.policy.name, self._router.version, self.name)
        except BadRequestError as error:
            self._failed("refused")
            self._refused = True
            logger.warning("The router file %s is refused: %s What was in force stays.", self.name, error)

    def _put(self, raw: bytes) -> None:
        if len(raw) > _MAX_BYTES:
            raise BadRequestError(f"It is longer than {_MAX_BYTES} bytes.")
        switch(self._router, raw)


def public_name(source: str) -> str:
    """Without what may be a secret."""
    if not source.startswith(("http://", "https://")):
        return source
    url = httpx.URL(source)
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))
