"""What OpenAPI says of us: fields that our middleware takes out of bodies, and the `route` that it writes into answers."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI

from router.exits import ExitRule
from router.router import Options
from server.http.contract import CHAT_PATH, CHAT_PATHS, COMPLETIONS_PATH, ROUTE_PATH

_NUMBER, _TEXT, _SWITCH = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
_NUMBERS = {"type": "object", "additionalProperties": _NUMBER}
_MAYBE = {"anyOf": [_NUMBER, {"type": "null"}]}
_ROUTE = {
    "type": "object",
    "description": "How a request was answered, and why.",
    "properties": {
        "requested": _TEXT, "mode": _TEXT, "score": _MAYBE, "threshold": _MAYBE, "reason": _TEXT,
        "latent_tokens": {"type": "integer"}, "escalated": _SWITCH, "scores": _NUMBERS, "stages": _NUMBERS,
        "latent_by_n": _NUMBERS, "policy": _TEXT, "discarded_tokens": {"type": "integer"},
        "thinking_budget": {"type": "integer"}, "exit": {"type": "object"},
    },
}  # fmt: skip


def describe_modes(app: FastAPI, modes: Sequence[str], max_latents: int, version: str) -> None:
    """The application's document with modes and routes in it."""
    app.title, app.version, original = "latentserve", version, app.openapi
    app.openapi = _amended(original, modes, max_latents)  # type: ignore[method-assign]


def _amended(original: Callable[[], dict[str, Any]], modes: Sequence[str], max_latents: int) -> Callable[[], dict[str, Any]]:
    own = {
        "mode": {
            "type": "string",
            "enum": list(modes),
            "description": "How to answer.",
        },
        "num_latent_tokens": {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": max(1, max_latents)}, {"const": "auto"}],
            "description": "Latents that stand in for the chain; auto: as few as are expected to suffice.",
        },
        "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "description": "The answer's deadline."},
        "router": {"$ref": "#/components/schemas/RouterOptions"},
        "exit": {
            "anyOf": [{"type": "boolean"}, {"const": "auto"}, {"$ref": "#/components/schemas/ExitRule"}],
            "description": "Whether a chain may end early, and by which rule.",
        },
    }

    def openapi() -> dict[str, Any]:
        document = original()
        schemas = document["components"]["schemas"]
        if "Route" in schemas:
            return document  # FastAPI keeps the document that it made
        schemas |= {
            "Route": _ROUTE,
            "RouterOptions": Options.model_json_schema(),
            "ExitRule": ExitRule.model_json_schema(),
        }
        paths = document["paths"]
        for path in (*CHAT_PATHS, COMPLETIONS_PATH):
            if operation := paths.get(path, {}).get("post"):
                body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                schemas[body]["properties"] |= own
                answer = operation["responses"]["200"].setdefault("content", {})
                answer["application/json"] = {"schema": _with_route({})}
        paths[ROUTE_PATH] = {"post": _route_operation(paths[CHAT_PATH]["post"])}
        return document

    return openapi


def _with_route(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties | {"route": {"$ref": "#/components/schemas/Route"}}}


def _route_operation(chat: dict[str, Any]) -> dict[str, Any]:
    answer = _with_route({"model": _TEXT, "prompt_tokens": {"type": "integer"}})
    return chat | {
        "summary": "Route", "description": "The decision on a chat completion, before anything is generated.",
        "operationId": "route", "responses": chat["responses"] | {
            "200": {"description": "The decision.", "content": {"application/json": {"schema": answer}}}
        },
    }  # fmt: skip
