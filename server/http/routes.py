"""Which routes there are, and who may call them. What is on neither list is not there, whatever an upgrade of vLLM brings."""

from fastapi import FastAPI

PUBLIC = (
    "/", "/console", "/docs", "/docs/oauth2-redirect", "/health", "/metrics", "/openapi.json", "/ping", "/ready", "/redoc",
    "/static", "/version",
)  # fmt: skip
"""Answered without a key: what probes, scrapers and the console's page need. None of them reaches the engine's queue."""
PROTECTED = (
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/responses",
    "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/explain", "/v1/route", "/v1/router",
    "/detokenize", "/load", "/tokenize",
)  # fmt: skip


def keep_supported(app: FastAPI) -> None:
    """Take the routes out that are on neither list: side doors to the engine, and what concerns engines that we refuse."""
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", "") in (*PUBLIC, *PROTECTED)]


def is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(("/console/", "/static/"))
