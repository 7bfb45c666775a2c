"""One request's life on the wire: an ASGI middleware around vLLM's endpoints.

read the body → `contract`: what is asked → vLLM's serving layer, whose engine is ours → `writer`: the route in the response →
metrics, logs, spans. It works on JSON alone, so chat completions, responses, messages and completions share it, streaming or
not, and an upgrade of vLLM does not touch it.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http import contract
from server.http.admission import Admission
from server.http.body import read_body
from server.http.client import Client
from server.http.contract import AS_CHAT, CHAT_PATH, GENERATING_PATHS, MODE_HEADER, SESSION_HEADER, Terms
from server.http.errors import KeyLimitError, LatentserveError
from server.http.keys import client_key
from server.http.quotas import Quotas
from server.http.writer import RouteWriter, failure_of
from server.observe.observers import Observers
from server.observe.record import Record, current
from server.observe.tracing import Trace
from server.observe.workload import Workload

ID_HEADER = "x-request-id"
_HELD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may cost the server before, and while, it is answered."""

    body_mib: int
    client_seconds: float
    """For a body to come."""
    answer_seconds: float


class ReasoningModes:
    """Reads what a request asks for, admits it, tells the engine by its `Record`, and writes the route into the response."""

    def __init__(
        self, app: ASGIApp, terms: Terms, bounds: Bounds, admission: Admission, workload: Workload, quotas: Quotas,
        observers: Observers,
    ) -> None:  # fmt: skip
        self._app, self._terms, self._bounds, self._observers = app, terms, bounds, observers
        self._admission, self._workload, self._quotas = admission, workload, quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            return await self._app(scope, receive, send)
        received, path, headers = time.perf_counter(), get_route_path(scope), Headers(scope=scope)
        trace = Trace(path, headers, received) if self._observers.trace and path in GENERATING_PATHS else None
        key = client_key.get()
        try:
            # Before a body is read for it: what a limit refuses costs as little as can be.
            quota = await self._quotas.enter(key) if key and path in GENERATING_PATHS else None
            raw = await read_body(headers, receive, self._bounds.body_mib, self._bounds.client_seconds)
            if raw is None:
                return None  # the client left
            body = contract.parse(raw)
            if path not in GENERATING_PATHS or not isinstance(body, dict):  # vLLM's error says what a body should be
                return await self._pass_on(scope, raw, body, receive, send)
            given = contract.check_id(headers.get(ID_HEADER) or body.get("request_id"), ID_HEADER)
            session = contract.take_session(body, headers.get(SESSION_HEADER))
            answers, seconds = contract.count_answers(body), contract.take_seconds(body, self._bounds.answer_seconds)
            ask = contract.read_ask(path, body, headers.get(MODE_HEADER), self._terms)
            with self._admission.admit(answers) as end:
                client = Client(contract.encode(body), receive, seconds, end)
                record = Record(
                    ask, given or uuid.uuid4().hex, session_id=session, answers=answers,
                    most_tokens=contract.given_limit(body), started=received, quota=quota,
                )  # fmt: skip
                # With an id in any case: a second run of the request would have another one.
                changed = {"content-length": str(len(client.body)), ID_HEADER: record.request_id}
                if session:
                    changed[SESSION_HEADER.lower()] = session
                if trace:
                    record.trace_id = trace.id
                    changed |= trace.headers()
                async with _settled(record):
                    with self._workload.holding(record):
                        await self._answer(record, _changed(scope, path, changed), client, send, trace, body)
        except LatentserveError as error:
            if path in GENERATING_PATHS:
                self._observers.metrics.failed(None, failure_of(error.status))
            if trace:
                trace.refuse(error.status, failure_of(error.status))
            if isinstance(error, KeyLimitError):  # whoever asks again at once is slowed down, at no cost
                await asyncio.sleep(_HELD_SECONDS)
            return await error.response(path)(scope, receive, send)

    async def _pass_on(self, scope: Scope, raw: bytes, body: Any, receive: Receive, send: Send) -> None:
        """What generates nothing."""
        if isinstance(body, dict):
            contract.refuse_unsupported(body, self._terms.template_kwargs)
        client = Client(raw if body is None else contract.encode(body), receive, self._bounds.answer_seconds)
        await self._app(_changed(scope, get_route_path(scope), {"content-length": str(len(client.body))}), client.receive, send)

    async def _run(self, scope: Scope, client: Client, receive: Receive, writer: RouteWriter) -> None:
        work = asyncio.ensure_future(self._app(scope, receive, writer))
        try:
            await client.until_left(work)
        except LatentserveError as error:
            await writer.fail(error)
        finally:
            await client.stop(work)

    async def _answer(
        self, record: Record, scope: Scope, client: Client, send: Send, trace: Trace | None, body: contract.Body
    ) -> None:
        token = current.set(record)
        expected = self._workload.expected
        writer = RouteWriter(send, record, get_route_path(scope), self._terms.reasoning_content, expected)
        try:
            if record.quota and record.ask.must_think and (reason := await record.quota.claim()):
                return await writer.fail(reason)  # before anything is read for it
            await self._run(scope, client, client.receive, writer)
            if record.restarts and record.failure is None:
                await writer.restart()
                await self._run(scope, client, client.replayed(), writer)
        finally:
            await record.close()
            current.reset(token)
            record.ended = time.perf_counter()
            if not writer.is_complete:
                record.failure = "client_left" if client.has_left else "engine"
            if trace:
                trace.end(record)
            if not record.ask.only_route:
                key, messages = Headers(scope=scope).get("authorization"), body.get("messages") or body.get("input")
                self._observers.write_down(record, key, messages)


@asynccontextmanager
async def _settled(record: Record) -> AsyncIterator[None]:
    """What the request came to is paid by its key, whatever ends it, and whoever waits for that no more."""
    try:
        yield
    finally:
        if record.quota:
            read, generated = record.prompt_tokens + record.changed_tokens, record.generated_tokens + record.discarded_tokens
            await asyncio.shield(record.quota.settle(read, record.thinking_tokens, generated))


def _changed(scope: Scope, path: str, headers: dict[str, str]) -> Scope:
    """The scope with these headers instead of those that it may have by their names; `/v1/route` and `/v1/explain` as a chat
    completion."""
    names = {name.encode() for name in headers}
    kept = [header for header in scope["headers"] if header[0] not in names]
    scope = dict(scope, headers=[*kept, *((name.encode(), value.encode("latin-1")) for name, value in headers.items())])
    if path in AS_CHAT:
        chat = scope["path"].removesuffix(path) + CHAT_PATH
        scope |= {"path": chat, "raw_path": chat.encode()}
    return scope
