"""Clients' keys: several, kept as hashes, read again when their file changes, each with its limits.

keys:
  - name: alice
    sha256: 2bd806c9…            # of the key: printf %s KEY | sha256sum
    requests_per_minute: 60
    thinking_tokens_per_minute: 20000
  - name: jobs
    sha256: 81b637d8…
    trusted: true
"""

import hashlib
import logging
import secrets
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from reasoning_net.errors import sentence
from server.engine.errors import ConfigurationError
from server.http.errors import UnauthorizedError
from server.http.routes import is_public

logger = logging.getLogger("vllm.latentserve.keys")


class Key(BaseModel):
    """One client. Limits that are not named do not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    requests_per_minute: int | None = Field(None, gt=0)
    tokens_per_minute: int | None = Field(None, gt=0, description="Prompt and generated tokens.")
    thinking_tokens_per_minute: int | None = Field(None, gt=0, description="Reserved by prediction, settled afterwards.")
    concurrent_explicit: int | None = Field(None, gt=0, description="Answers that are thought through in text at once.")
    max_amplification: float | None = Field(None, gt=0, description="Generated ÷ prompt tokens of an hour.")
    max_thinking_tokens: int | None = Field(None, gt=0, description="Of one answer; after the cut the model answers.")
    trusted: bool = Field(False, description="Chains may be longer than 1.3 times what was predicted.")

    @property
    def limits_thinking(self) -> bool:
        """Whether the length of a chain must be predicted before it is written."""
        return self.thinking_tokens_per_minute is not None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...]


def read_keys(path: Path) -> tuple[Key, ...]:
    """Raises `ConfigurationError`."""
    try:
        found = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConfigurationError(f"{path} cannot be used: {sentence(error)}.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if len({key.name for key in found.keys}) < len(found.keys):
        raise ConfigurationError(f"{path} names a key twice: names tell limits and prefix caches apart.")
    return found.keys


class KeyRing:
    """Whom the server knows. A file that breaks while the server runs is reported, and the keys from before stay in force."""

    def __init__(self, plain: Sequence[str], file: Path | None) -> None:
        """`plain`: keys without limits, from vLLM's `--api-key` and the operator's. Raises `ConfigurationError`."""
        self._plain = tuple(
            Key(name=f"key-{number}", sha256=_digest(key), trusted=True) for number, key in enumerate(plain, start=1)
        )
        self._file, self._keys = file, read_keys(file) if file else ()
        self._read_at = self._modified()

    def __bool__(self) -> bool:
        return bool(self._plain) or self._file is not None

    def find(self, given: str) -> Key | None:
        """The key that was sent; the time that it takes does not tell how near a wrong one is."""
        self._refresh()
        digest, found = _digest(given), None
        for key in (*self._plain, *self._keys):
            if secrets.compare_digest(digest, key.sha256.lower()):
                found = key
        return found

    def _modified(self) -> tuple[int, int] | None:
        try:
            state = self._file.stat() if self._file else None
        except OSError:
            return None
        return (state.st_mtime_ns, state.st_size) if state else None

    def _refresh(self) -> None:
        modified = self._modified()
        if self._file is None or modified == self._read_at:
            return
        self._read_at = modified
        try:
            self._keys = read_keys(self._file)
            logger.info("%d keys from %s.", len(self._keys), self._file)
        except ConfigurationError as error:
            logger.warning("%s The keys from before stay in force.", error)


class KeyGuard:
    """Answers 401 to who has none of the keys, on every path that is not public; tells the engine whose request it is."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope.get("method") != "OPTIONS":
            path = get_route_path(scope)
            if not is_public(path):
                key = self._keys.find(_given(Headers(scope=scope)))
                if key is None:
                    error = UnauthorizedError("The key is missing or wrong. Send it as Authorization: Bearer KEY.")
                    return await error.response(path)(scope, receive, send)
                token = client_key.set(key)
                try:
                    return await self._app(scope, receive, send)
                finally:
                    client_key.reset(token)
        return await self._app(scope, receive, send)


def salt_of(key: Key, salt: str | None) -> str:
    """Of the prefix cache: no key finds what another has left there, whatever salt its client sends."""
    return hashlib.sha256(f"{key.sha256}/{key.name}/{salt or ''}".encode("utf-8", "surrogatepass")).hexdigest()


def _given(headers: Headers) -> str:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else headers.get("x-api-key", "")  # as Anthropic's clients send it


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


client_key: ContextVar[Key | None] = ContextVar("client_key", default=None)
"""Of the HTTP request at hand; None on a server without keys."""
