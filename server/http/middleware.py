"""One request's life on the wire: an ASGI middleware around vLLM's endpoints.

read the body → `contract`: what is asked → vLLM's serving layer, whose engine is ours → `writer`: the route in the response →
metrics, logs, spans. It works on JSON alone, so chat completions, responses, messages and completions share it, streaming or
not, and an upgrade of vLLM does not touch it.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable
from typing import Any

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http import contract
from server.http.contract import CHAT_PATH, GENERATING_PATHS, MODE_HEADER, ROUTE_PATH, Terms
from server.http.errors import LatentserveError
from server.http.writer import RouteWriter, failure_of
from server.observe.decision_log import DecisionLog
from server.observe.metrics import Metrics
from server.observe.record import Ask, Record, current
from server.observe.tracing import Trace

logger = logging.getLogger("vllm.latentserve.requests")
_ID_HEADER = "x-request-id"
_MAX_ID = 128


class ReasoningModes:
    """Reads what a request asks for, makes its `Record` known to the engine, and writes the route into the response."""

    def __init__(
        self, app: ASGIApp, terms: Terms, metrics: Metrics, reasoning_content: bool = False, log: DecisionLog | None = None,
        log_requests: bool = False, trace: bool = False,
    ) -> None:  # fmt: skip
        self._app, self._terms, self._metrics, self._reasoning_content = app, terms, metrics, reasoning_content
        self._log, self._log_requests, self._trace = log, log_requests, trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        received, path, headers = time.perf_counter(), get_route_path(scope), Headers(scope=scope)
        raw = await _read_body(receive)
        if raw is None:
            return None  # the client left
        trace = Trace(path, headers, received) if self._trace and path in GENERATING_PATHS else None
        try:
            body = contract.parse(raw)
            ask = self._ask(path, body, headers)
            client = _Client(raw if body is None else contract.encode(body), receive)
        except LatentserveError as error:
            if path in GENERATING_PATHS:
                self._metrics.failed(None, failure_of(error.status))
            if trace:
                trace.refuse(error.status, failure_of(error.status))
            return await error.response(path)(scope, receive, send)
        changed = [(b"content-length", str(len(client.body)).encode())]
        if path == ROUTE_PATH:  # a chat completion up to the decision
            chat = scope["path"].removesuffix(ROUTE_PATH) + CHAT_PATH
            scope = dict(scope, path=chat, raw_path=chat.encode())
        if ask is None:
            return await self._app(_with_headers(scope, changed), client.receive, send)
        given = headers.get(_ID_HEADER) or body.get("request_id")
        record = Record(ask, started=received, request_id=str(given or uuid.uuid4().hex)[:_MAX_ID])
        if not given:  # or a second run of the request would have another id
            changed.append((_ID_HEADER.encode(), record.request_id.encode()))
        if trace:
            record.trace_id = trace.id
            changed += trace.headers()
        return await self._answer(record, _with_headers(scope, changed), client, send, trace, body)

    def _ask(self, path: str, body: Any, headers: Headers) -> Ask | None:
        if not isinstance(body, dict):
            return None  # vLLM's error says what it should be
        if path in GENERATING_PATHS:
            return contract.read_ask(path, body, headers.get(MODE_HEADER), self._terms)
        contract.refuse_unsupported(body, self._terms.template_kwargs)
        return None

    async def _answer(
        self, record: Record, scope: Scope, client: "_Client", send: Send, trace: Trace | None, body: contract.Body
    ) -> None:
        token = current.set(record)
        writer = RouteWriter(send, record, self._reasoning_content)
        try:
            await client.until_left(self._app(scope, client.receive, writer))
            if record.restarts:
                await writer.restart()
                await client.until_left(self._app(scope, client.replayed(), writer))
        finally:
            current.reset(token)
            record.ended = time.perf_counter()
            if not writer.is_complete:
                record.failure = "client_left" if client.has_left else "engine"
            if trace:
                trace.end(record)
            if not record.ask.only_route:
                self._write_down(record, Headers(scope=scope).get("authorization"), body)

    def _write_down(self, record: Record, key: str | None, body: contract.Body) -> None:
        if record.failure:
            self._metrics.failed(record.ask.mode, record.failure)
        else:
            self._metrics.answered(record, key)
        if self._log:
            self._log.write(record, body.get("messages") or body.get("input"))
        if self._log_requests:
            logger.info("request", extra=record.line())


def _with_headers(scope: Scope, headers: list[tuple[bytes, bytes]]) -> Scope:
    """The scope with these headers instead of those that it may have by their names."""
    names = {name for name, _ in headers}
    return dict(scope, headers=[*(header for header in scope["headers"] if header[0] not in names), *headers])


async def _read_body(receive: Receive) -> bytes | None:
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


class _Client:
    """The request's body, replayed, and one watch for the client leaving, however many layers ask for it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body = body
        self._is_read = False
        self._gone = asyncio.ensure_future(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    @property
    def has_left(self) -> bool:
        return self._gone.done()

    async def receive(self) -> Message:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    def replayed(self) -> Receive:
        """The same request once more."""
        self._is_read = False
        return self.receive

    async def until_left(self, work: Awaitable[None]) -> None:
        """Stop the work as soon as nobody waits for it."""
        task = asyncio.ensure_future(work)
        await asyncio.wait((task, self._gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            task.result()
