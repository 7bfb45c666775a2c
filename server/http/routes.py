"""Which routes there are, and who may call them. What is on neither list is not there, whatever an upgrade of vLLM brings."""

import hashlib
import secrets
from collections.abc import Sequence

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import UnauthorizedError

PUBLIC = (
    "/", "/console", "/docs", "/docs/oauth2-redirect", "/health", "/metrics", "/openapi.json", "/ping", "/ready", "/redoc",
    "/static", "/version",
)  # fmt: skip
"""Answered without a key: what probes, scrapers and the console's page need. None of them reaches the engine's queue."""
PROTECTED = (
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/responses",
    "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/route", "/v1/router",
    "/detokenize", "/load", "/tokenize",
)  # fmt: skip


def keep_supported(app: FastAPI) -> None:
    """Take the routes out that are on neither list: side doors to the engine, and what concerns engines that we refuse."""
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", "") in (*PUBLIC, *PROTECTED)]


def is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(("/console/", "/static/"))


class KeyGuard:
    """Answers 401 to who has none of the keys, on every path that is not public."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope.get("method") != "OPTIONS":
            path = get_route_path(scope)
            if not is_public(path) and not self._is_known(Headers(scope=scope)):
                error = UnauthorizedError("The key is missing or wrong. Send it as Authorization: Bearer KEY.")
                return await error.response(path)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        given = _digest(key if scheme.lower() == "bearer" else headers.get("x-api-key", ""))  # as Anthropic's clients send it
        return any(secrets.compare_digest(given, known) for known in self._keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
