"""One streamed chat completion, with its times. What goes wrong is a kind of error, not an exception."""

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from reasoning_net.errors import StageError


class ServerGoneError(StageError):
    """Nothing listens any more: there is nothing left to measure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds count from when the request was due, not from when the client came to send it."""

    seconds: float
    """Until the end of the stream."""
    first_token_seconds: float | None
    """Until the first chunk with content or reasoning; None for an empty answer."""
    tokens: int
    mode: str | None
    """That answered; None from a server without our modes."""
    error: str | None = None
    """The kind of failure; None for an answer."""
    detail: str = ""

    @property
    def token_seconds(self) -> float | None:
        """TPOT: the time per generated token after the first; None where there is none."""
        if self.first_token_seconds is None or self.tokens < 2:
            return None
        return (self.seconds - self.first_token_seconds) / (self.tokens - 1)


async def complete(client: httpx.AsyncClient, body: dict[str, Any], due: float) -> Answer:
    """Send `body` as a streaming request that was due at `due` (perf_counter). Raises `ServerGoneError`."""
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    first: float | None = None
    last: dict[str, Any] = {}

    def failed(error: str, detail: str) -> Answer:
        return Answer(time.perf_counter() - due, first, 0, None, error, " ".join(detail.split())[:300])

    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return failed(f"HTTP {response.status_code}", message((await response.aread()).decode(errors="replace")))
            async for line in response.aiter_lines():
                # Parsing every chunk would take time from the server on the same machine: after the first token only the last.
                is_wanted = first is None or '"usage"' in line or '"error"' in line
                if not is_wanted or not line.startswith("data: {"):
                    continue
                data = line.removeprefix("data: ")
                event = json.loads(data)
                if "error" in event:
                    return failed("error in the stream", message(data))
                if event.get("usage"):
                    last = event
                if first is None and _has_text(event):
                    first = time.perf_counter() - due
    except httpx.ConnectError as error:
        raise ServerGoneError(f"{client.base_url} cannot be reached any more ({error}).") from error
    except httpx.TimeoutException as error:
        return failed("timeout", repr(error))
    except httpx.HTTPError as error:
        return failed("connection", repr(error))
    except ValueError as error:
        return failed("not OpenAI's protocol", repr(error))
    if not last:
        return failed("incomplete", "the stream ended without its usage")
    route = last.get("route")
    if "mode" in body and not route:
        return failed("no route", "the answer does not say in which mode it was given: is this another server?")
    return Answer(time.perf_counter() - due, first, last["usage"]["completion_tokens"], route["mode"] if route else None)


def _has_text(event: dict[str, Any]) -> bool:
    deltas = [choice["delta"] for choice in event.get("choices", ())]
    return any(delta.get("content") or delta.get("reasoning") for delta in deltas)


def message(body: str) -> str:
    """What a server says instead of an answer; its own words where it speaks OpenAI's protocol."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
