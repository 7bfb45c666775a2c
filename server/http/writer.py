"""The route of a request, written into its response: headers, the `route` object in JSON and in the last SSE events, usage."""

import json
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from server.http.contract import EXPECTED_HEADER, MODE_HEADER, SCORE_HEADER, SESSION_HEADER, Body
from server.http.errors import LatentserveError
from server.observe.record import Record

_FAILURES = {
    400: "invalid", 401: "denied", 403: "denied", 404: "not_found", 429: "overloaded", 503: "unavailable", 504: "deadline",
}  # fmt: skip
# Of events that end a choice, carry the whole usage, or end a response or a message. In text, quotes are escaped.
_LAST = (
    b'"finish_reason":"', b'"choices":[]', b'"type":"response.completed"', b'"type":"response.incomplete"',
    b'"type":"message_delta"',
)  # fmt: skip
_FAILED = (b'data: {"error"', b"event: error")


def failure_of(status: int) -> str:
    """What came instead of an answer, for metrics."""
    return _FAILURES.get(status, "refused" if status < 500 else "engine")


class RouteWriter:
    """Holds the response's start back until the engine has decided, then adds headers and the `route` object."""

    def __init__(
        self, send: Send, record: Record, path: str, reasoning_content: bool, expected: Callable[[Record], float | None]
    ) -> None:
        """`expected`: tokens that an answer will have."""
        self._send, self._record, self._path, self._reasoning_content = send, record, path, reasoning_content
        self._expected = expected
        self._start: Message | None = None
        self._is_stream = False
        self._is_second = False
        self._has_begun = self._has_failed = False
        self.is_complete = False
        self._first_event = b""
        self._body = b""

    async def restart(self) -> None:
        """Tell the client that what it has read so far is void, before the other answer follows."""
        self._record.restarts, self._is_second = False, True
        first = json.loads(self._first_event.partition(b"data: ")[2])
        event = {name: first[name] for name in ("id", "object", "created", "model")} | {"choices": []}
        event["route"] = self._record.public() | {"restart": True}
        await self._send({"type": "http.response.body", "body": b"data: " + _dumped(event) + b"\n\n", "more_body": True})

    async def fail(self, error: LatentserveError) -> None:
        """Say why there will be no answer, or no more of it, in the protocol of the request. What follows is dropped."""
        self._record.status, self._record.failure = error.status, failure_of(error.status)
        self.is_complete = self._has_failed = True
        if self._has_begun:
            if self._is_stream:
                await self._send({"type": "http.response.body", "body": error.event(self._path)})
            return
        response = error.response(self._path)
        if self._record.session_id is not None:
            response.headers[SESSION_HEADER] = self._record.session_id
        await self._send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await self._send({"type": "http.response.body", "body": response.body})

    async def __call__(self, message: Message) -> None:
        if self._record.refusal and not self._has_begun and not self._has_failed:
            await self.fail(self._record.refusal)
        if self._has_failed or self._record.restarts or (self._is_second and message["type"] == "http.response.start"):
            return  # after an error of ours; the end of a void answer, and the start that the client has
        if message["type"] == "http.response.start":
            self._start, self._record.status = message, message["status"]
            if message["status"] != 200:
                self._record.failure = failure_of(message["status"])
            self._is_stream = "text/event-stream" in MutableHeaders(scope=message).get("content-type", "")
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._is_stream:
            await self._write_event(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._write_json()

    async def _write_event(self, message: Message) -> None:
        await self._begin()
        event = message.get("body", b"")
        if not self._first_event:
            self._first_event, self._record.first_byte = event, time.perf_counter()
        if event.startswith(_FAILED):
            self._record.failure = "engine"
        self.is_complete = not message.get("more_body")
        await self._send({**message, "body": self._event(event)})

    async def _write_json(self) -> None:
        assert self._start is not None
        body = self._body
        self.is_complete = self._start["status"] != 200
        if not self.is_complete:
            content = json.loads(body)
            # vLLM answers with null where it saw the client leave.
            self.is_complete = isinstance(content, dict)
            if isinstance(content, dict) and self._record.mode is not None:
                body = _dumped(self._answer(content))
        await self._begin(len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, content_length: int | None = None) -> None:
        if self._start is None:
            return
        headers = MutableHeaders(scope=self._start)
        if self._record.mode is not None:
            headers[MODE_HEADER] = self._record.mode
        if self._record.score is not None:
            headers[SCORE_HEADER] = f"{self._record.score:.4f}"
        if self._record.session_id is not None:
            headers[SESSION_HEADER] = self._record.session_id
        if self._record.ask.only_route and (tokens := self._expected(self._record)) is not None:
            headers[EXPECTED_HEADER] = str(round(tokens))
        if content_length is not None:
            headers["content-length"] = str(content_length)
        start, self._start, self._has_begun = self._start, None, True
        await self._send(start)

    def _answer(self, content: Body) -> MutableMapping[str, Any]:
        if self._record.ask.only_route:
            content = {"model": content["model"], "prompt_tokens": content["usage"]["prompt_tokens"]}
        elif self._record.ask.verifies:
            return self._explained(content)
        elif self._reasoning_content:
            repeat_reasoning(content)
        return self._completed(content)

    def _explained(self, content: Body) -> MutableMapping[str, Any]:
        """What `/v1/explain` answers. Latents that were not finite have no reading, and the answer then none."""
        told, message = self._record.explanation, content["choices"][0]["message"]
        found = self._completed({name: content[name] for name in ("id", "model", "usage")} | {"answer": message["content"]})
        return {
            **found,
            "trace": found["route"].pop("trace"),
            "verified": told.is_verified if told else None,
            "strategy": "input lens",
            "changed_tokens": self._record.changed_tokens,
        }

    def _event(self, event: bytes) -> bytes:
        """The event with the route in it, if it is one of the last."""
        is_last = any(mark in event for mark in _LAST)
        repeats = self._reasoning_content and b'"reasoning":"' in event
        if self._record.ask.is_plain:
            return event
        if not (is_last or repeats) or b"data: {" not in event:
            return event
        head, _, data = event.partition(b"data: ")
        content = json.loads(data)
        if "response" in content:
            content["response"] = self._completed(content["response"])
        elif is_last:
            content = self._completed(content)
        if repeats:
            repeat_reasoning(content)
        return head + b"data: " + _dumped(content) + b"\n\n"

    def _completed(self, content: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self._record.request_id = content.get("id", self._record.request_id)  # some endpoints number the engine's
        content["route"] = self._record.public()
        usage = content.get("usage")
        for kind in ("prompt_tokens", "input_tokens"):  # OpenAI's two APIs; Anthropic's has no details
            if isinstance(usage, dict) and kind in usage and "total_tokens" in usage:
                details = usage.get(f"{kind}_details") or {}
                usage[f"{kind}_details"] = details | {"latent_tokens": self._record.latent_tokens}
        return content


def _dumped(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def repeat_reasoning(content: Body) -> None:
    """Say the thinking text once more as `reasoning_content`, for clients that know only the older name."""
    for choice in content.get("choices") or ():
        for part in (choice.get("message"), choice.get("delta")):
            if isinstance(part, dict) and part.get("reasoning") is not None:
                part["reasoning_content"] = part["reasoning"]
