"""What OpenAPI says of us: fields that our middleware takes out of bodies, and the `route` that it writes into answers."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI

from router.exits import ExitRule
from router.helper import HelpRule
from router.router import Options
from router.soft import SoftThinking
from server.http.contract import CHAT_PATH, CHAT_PATHS, COMPLETIONS_PATH, EXPLAIN_PATH, ROUTE_PATH

_NUMBER, _COUNT, _TEXT, _SWITCH = {"type": "number"}, {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_NUMBERS = {"type": "object", "additionalProperties": _NUMBER}
_MAYBE, _MAYBE_TEXT, _MAYBE_SWITCH = ({"anyOf": [kind, {"type": "null"}]} for kind in (_NUMBER, _TEXT, _SWITCH))
_SCORES = {
    "type": "object", "additionalProperties": _NUMBER,
    "properties": {"probes": {"type": "object", "additionalProperties": _MAYBE, "description": "Of the operator's own."}},
}  # fmt: skip
_TRACE = {
    "anyOf": [{"type": "array", "items": {
        "type": "object",
        "properties": {
            "latent": _COUNT, "value": _COUNT, "operation": _MAYBE_TEXT, "probability": _NUMBER,
            "verified": _MAYBE_SWITCH,
        },
    }}, {"type": "null"}],
    "description": "For each latent the likeliest whole number, and the operation that leads to it where that is a step to the "
    "answer. null: the answer was not made from latents.",
}  # fmt: skip
_EXPLAINED = {
    "answer": _MAYBE_TEXT, "trace": _TRACE, "verified": _MAYBE_SWITCH, "strategy": _TEXT, "changed_tokens": _COUNT,
}  # fmt: skip
_ROUTE = {
    "type": "object",
    "description": "How a request was answered, and why.",
    "properties": {
        "requested": _TEXT, "mode": _TEXT, "score": _MAYBE, "threshold": _MAYBE, "reason": _TEXT,
        "latent_tokens": _COUNT, "escalated": _SWITCH, "scores": _SCORES, "stages": _NUMBERS,
        "latent_by_n": _NUMBERS, "policy": _TEXT, "router_version": _TEXT, "discarded_tokens": _COUNT,
        "thinking_budget": _COUNT, "unanswered": _SWITCH, "exit": {"type": "object"}, "soft": {"type": "object"},
        "helper": {"type": "object"}, "trace": _TRACE, "decodability": _MAYBE,
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
        "explain": _SWITCH | {"description": "Say in `route.trace` what the latents say."},
        "router": {"$ref": "#/components/schemas/RouterOptions"},
        "exit": {
            "anyOf": [{"type": "boolean"}, {"const": "auto"}, {"$ref": "#/components/schemas/ExitRule"}],
            "description": "Whether a chain may end early, and by which rule.",
        },
        "helper": {
            "anyOf": [{"type": "boolean"}, {"$ref": "#/components/schemas/HelpRule"}],
            "description": "Whether a stronger model writes steps of a chain, and by which rule.",
        },
        "soft": {"$ref": "#/components/schemas/SoftThinking"},
        "reasoning": {"enum": ["brief", "full"], "description": "brief: of a chain its last sentences only."},
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
            "HelpRule": HelpRule.model_json_schema(),
            "SoftThinking": SoftThinking.model_json_schema(),
        }
        paths = document["paths"]
        for path in (*CHAT_PATHS, COMPLETIONS_PATH):
            if operation := paths.get(path, {}).get("post"):
                body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                schemas[body]["properties"] = own | schemas[body]["properties"]
                answer = operation["responses"]["200"].setdefault("content", {})
                answer["application/json"] = {"schema": _with_route({})}
        chat = paths[CHAT_PATH]["post"]
        routed = "The decision on a chat completion, before anything is generated."
        explained = "A latent answer, what its latents say, and whether that follows when the question is changed."
        paths[ROUTE_PATH] = {"post": _operation(chat, "Route", routed, {"prompt_tokens": _COUNT})}
        paths[EXPLAIN_PATH] = {"post": _operation(chat, "Explain", explained, _EXPLAINED)}
        return document

    return openapi


def _with_route(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties | {"route": {"$ref": "#/components/schemas/Route"}}}


def _operation(chat: dict[str, Any], summary: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Of what takes a chat completion's body, and answers something else."""
    answer = _with_route({"model": _TEXT} | properties)
    return chat | {
        "summary": summary, "description": description, "operationId": summary.lower(),
        "responses": chat["responses"] | {"200": {"description": summary, "content": {"application/json": {"schema": answer}}}},
    }  # fmt: skip
