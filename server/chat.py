"""The request's mode and the response's route, on the wire: an ASGI middleware around vLLM's generating endpoints.

It works on OpenAI's JSON alone, so chat completions, responses, messages and completions share it, streaming or not, and an
upgrade of vLLM does not touch it.

Precedence of the mode: body field `mode` > model alias `name:latent` > header `X-Reasoning-Mode` > what `reasoning_effort`,
`enable_thinking` or `thinking` imply > the server's default. The prompt X is rendered the same in every mode, so the
fields that would change it are taken out of the body.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, MutableMapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.policy import Mode
from router.router import Options
from server.errors import BadRequestError
from server.observe.decision_log import DecisionLog
from server.observe.metrics import Metrics
from server.observe.record import Ask, Record, current
from server.observe.tracing import Trace

logger = logging.getLogger("vllm.latentserve.requests")
MODE_HEADER, SCORE_HEADER = "X-Reasoning-Mode", "X-Reasoning-Score"
_ID_HEADER = "x-request-id"
_CHAT_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
_PATHS = (*_CHAT_PATHS, "/v1/completions")
_ROUTE_PATH = "/v1/route"
_EFFORT = {
    "none": Mode.DIRECT,
    "minimal": Mode.LATENT,
    "low": Mode.LATENT,
    "medium": Mode.AUTO,
    "high": Mode.EXPLICIT,
    "xhigh": Mode.EXPLICIT,
    "max": Mode.EXPLICIT,
}
_OF_THE_ANSWER = ("stream", "stream_options", "n", "logprobs", "top_logprobs", "prompt_logprobs", "response_format")
_THINKING = {True: Mode.EXPLICIT, False: Mode.DIRECT, None: None}
_FAILURES = {400: "invalid", 401: "denied", 403: "denied", 404: "not_found", 429: "overloaded", 504: "deadline"}
Body = dict[str, Any]


class ReasoningModes:
    """Reads the mode of a request, makes its `Route` known to the engine, and writes the route into the response."""

    def __init__(
        self,
        app: ASGIApp,
        default: Mode,
        latent_available: bool,
        metrics: Metrics,
        reasoning_content: bool = False,
        log: DecisionLog | None = None,
        log_requests: bool = False,
        trace: bool = False,
    ) -> None:
        self._log, self._log_requests, self._trace = log, log_requests, trace
        self._app, self._default, self._latent_available, self._metrics = app, default, latent_available, metrics
        self._reasoning_content = reasoning_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in (*_PATHS, _ROUTE_PATH):
            return await self._app(scope, receive, send)
        asked_path = scope["path"]
        only_route = asked_path == _ROUTE_PATH
        if only_route:  # a chat completion up to the decision
            scope = dict(scope, path=_CHAT_PATHS[0], raw_path=_CHAT_PATHS[0].encode())
        received = time.perf_counter()
        raw = await _read_body(receive)
        if raw is None:
            return None  # the client left
        headers = Headers(scope=scope)
        try:
            body = json.loads(raw)
            ask = self._route(asked_path, body, headers) if isinstance(body, dict) else None
            route = Record(ask) if ask else None
        except BadRequestError as error:
            self._metrics.failed(None, _FAILURES[error.status])
            if self._trace:
                Trace(asked_path, headers, received).refuse(error.status, _FAILURES[error.status])
            return await JSONResponse(error.body(), error.status)(scope, receive, send)
        except ValueError:
            route = None  # not JSON: vLLM's error says so
        else:
            if only_route and route:
                route.ask = replace(route.ask, only_route=True)
                body = {name: value for name, value in body.items() if name not in _OF_THE_ANSWER}
            raw = json.dumps(body).encode()
        changed = [(b"content-length", str(len(raw)).encode())]
        if route is None:
            return await self._app(_with_headers(scope, changed), _Client(raw, receive).receive, send)
        given = headers.get(_ID_HEADER) or body.get("request_id")
        route.started, route.request_id = received, str(given or uuid.uuid4().hex)
        if not given:  # or a second run of the request would have another id
            changed.append((_ID_HEADER.encode(), route.request_id.encode()))
        trace = Trace(asked_path, headers, received) if self._trace else None
        if trace:
            route.trace_id = trace.id
            changed += trace.headers()
        scope = _with_headers(scope, changed)
        token = current.set(route)
        client = _Client(raw, receive)
        writer = _RouteWriter(send, route, self._reasoning_content)
        try:
            await self._until_left(self._app(scope, client.receive, writer), client)
            if route.restarts:
                await writer.restart()
                await self._until_left(self._app(scope, client.replayed(raw), writer), client)
        finally:
            current.reset(token)
            route.ended = time.perf_counter()
            if not writer.is_complete:
                route.failure = "client_left" if client.has_left else "engine"
            if trace:
                trace.end(route)
            if not only_route:
                if route.failure:
                    self._metrics.failed(route.ask.mode, route.failure)
                else:
                    self._metrics.answered(route, headers.get("authorization"))
                if self._log:
                    self._log.write(route, body.get("messages") or body.get("input"))
                if self._log_requests:
                    logger.info("request", extra=route.line())
        return None

    async def _until_left(self, work: Awaitable[None], client: "_Client") -> None:
        """Stop the work as soon as nobody waits for it."""
        task, gone = asyncio.ensure_future(work), asyncio.create_task(client.left())
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            task.result()

    def _route(self, path: str, body: Body, headers: Headers) -> Ask | None:
        """The request's route; None where there is nothing to choose (a raw completion, a continued message)."""
        refuse_unsupported(body)
        named, implied = take_mode(body, headers.get(MODE_HEADER))
        num_latents = body.pop("num_latent_tokens", None)
        if num_latents is not None and (not isinstance(num_latents, int) or isinstance(num_latents, bool)):
            raise BadRequestError("num_latent_tokens must be a whole number.", "num_latent_tokens")
        if path not in (*_CHAT_PATHS, _ROUTE_PATH) and named is None:
            return None
        for field, value in (("add_generation_prompt", False), ("continue_final_message", True), ("use_beam_search", True)):
            if body.get(field) is value:
                if named in (None, Mode.EXPLICIT) and "router" not in body and path != _ROUTE_PATH:
                    return None
                what = f"mode={named}" if named else "routing"
                raise BadRequestError(f"{field}={str(value).lower()} cannot be combined with {what}.", field)
        if implied is Mode.LATENT and not self._latent_available:
            implied = Mode.AUTO  # a low effort is no demand for latents
        mode = named or implied or self._default
        options = take_options(body, mode)
        if options.early and not (path == _CHAT_PATHS[0] and body.get("stream")):
            raise BadRequestError("router.early is for streamed chat completions.", "router")
        return Ask(str(mode), num_latents, options, names_temperature=body.get("temperature") is not None)


def take_mode(body: Body, header: str | None) -> tuple[Mode | None, Mode | None]:
    """(the mode that the request names, the mode that other fields imply); takes the fields out of the body."""
    alias = str(body.get("model") or "").rpartition(":")[2]
    field = body.pop("mode", None)
    sources = ((field, "mode"), (alias if alias in list(Mode) else None, "model"), (header, MODE_HEADER))
    named = next((_mode(value, param) for value, param in sources if value is not None), None)
    effort = body.pop("reasoning_effort", None)
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict):  # the responses API
        effort = effort or reasoning.pop("effort", None)
    if effort is not None and effort not in _EFFORT:
        raise BadRequestError(f"reasoning_effort must be one of {', '.join(_EFFORT)}, not {effort!r}.", "reasoning_effort")
    kwargs = body.get("chat_template_kwargs")
    thinking = kwargs.pop("enable_thinking", None) if isinstance(kwargs, dict) else None
    anthropic = body.pop("thinking", None)  # the messages API
    if isinstance(anthropic, dict) and "type" in anthropic:
        thinking = anthropic["type"] != "disabled"
    implied = _EFFORT[effort] if effort else _THINKING.get(thinking)
    if {named, implied} == {Mode.EXPLICIT, Mode.DIRECT}:
        asked = f"reasoning_effort={effort}" if effort else f"enable_thinking={str(thinking).lower()}"
        raise BadRequestError(f"mode={named} contradicts {asked}. Send one of the two.", "mode")
    return named, implied


def take_options(body: Body, mode: Mode) -> Options:
    """The `router` field, taken out of the body."""
    given = body.pop("router", None)
    if given is None:
        return Options()
    if mode is not Mode.AUTO:
        raise BadRequestError(f"router is for mode=auto, not {mode}: a named mode is never overruled.", "router")
    return parse_options(given)


def parse_options(given: object) -> Options:
    """Raises `BadRequestError` with what is wrong."""
    try:
        options = Options.model_validate(given)
        _ = options.target
    except ValidationError as error:
        problems = "; ".join(".".join(map(str, ("router", *e["loc"]))) + ": " + e["msg"] for e in error.errors())
        raise BadRequestError(problems, "router") from None
    return options


def _mode(value: object, param: str) -> Mode:
    try:
        return Mode(str(value))
    except ValueError:
        raise BadRequestError(f"{param} must be one of {', '.join(Mode)}, not {value!r}.", param) from None


def refuse_unsupported(body: Body) -> None:
    """Clients can send neither embeddings nor templates: both would reach past the reserved tokens."""
    if body.get("prompt_embeds") is not None:
        raise BadRequestError("prompt_embeds is not accepted: only this server writes embeddings.", "prompt_embeds")
    if body.get("chat_template") is not None:
        raise BadRequestError("chat_template is not accepted per request. Set it with --chat-template.", "chat_template")
    messages = body.get("messages") or body.get("input") or ()
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and (part.get("type") == "prompt_embeds" or "prompt_embeds" in part):
                raise BadRequestError("prompt_embeds is not accepted: only this server writes embeddings.", "messages")


class _RouteWriter:
    """Holds the response's start back until the engine has decided, then adds headers and the `route` object."""

    def __init__(self, send: Send, route: Record, reasoning_content: bool) -> None:
        self._send, self._route, self._reasoning_content = send, route, reasoning_content
        self._start: Message | None = None
        self._is_stream = False
        self._is_second = False
        self.is_complete = False
        self._first_event = b""
        self._body = b""

    async def restart(self) -> None:
        """Tell the client that what it has read so far is void, before the other answer follows."""
        self._route.restarts, self._is_second = False, True
        first = json.loads(self._first_event.partition(b"data: ")[2])
        event = {name: first[name] for name in ("id", "object", "created", "model")} | {"choices": []}
        event["route"] = self._route.public() | {"restart": True}
        await self._send({"type": "http.response.body", "body": b"data: " + _dumped(event) + b"\n\n", "more_body": True})

    async def __call__(self, message: Message) -> None:
        if self._route.restarts or (self._is_second and message["type"] == "http.response.start"):
            return  # the end of a void answer, and the start that the client has
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body")
        if message["type"] == "http.response.start":
            self._start, self._route.status = message, message["status"]
            if message["status"] != 200:
                self._route.failure = _FAILURES.get(message["status"], "refused" if message["status"] < 500 else "engine")
            self._is_stream = "text/event-stream" in MutableHeaders(scope=message).get("content-type", "")
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._is_stream:
            await self._begin()
            if not self._first_event:
                self._first_event, self._route.first_byte = message.get("body", b""), time.perf_counter()
            if message.get("body", b"").startswith(b'data: {"error"'):
                self._route.failure = "engine"
            await self._send({**message, "body": self._event(message.get("body", b""))})
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                body = self._json(self._body)
                await self._begin(len(body))
                await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, content_length: int | None = None) -> None:
        if self._start is None:
            return
        headers = MutableHeaders(scope=self._start)
        if self._route.mode is not None:
            headers[MODE_HEADER] = self._route.mode
        if self._route.score is not None:
            headers[SCORE_HEADER] = f"{self._route.score:.4f}"
        if content_length is not None:
            headers["content-length"] = str(content_length)
        start, self._start = self._start, None
        await self._send(start)

    def _json(self, body: bytes) -> bytes:
        assert self._start is not None
        if self._start["status"] != 200 or self._route.mode is None:
            return body
        try:
            content = json.loads(body)
        except ValueError:
            return body
        if self._route.ask.only_route:
            content = self._decision(content)
        elif self._reasoning_content:
            repeat_reasoning(content)
        return _dumped(self._completed(content))

    def _decision(self, content: Body) -> Body:
        """The response of `/v1/route`."""
        return {"model": content["model"], "prompt_tokens": content["usage"]["prompt_tokens"]}

    def _event(self, event: bytes) -> bytes:
        """The event with the route in it, if it is one that ends a choice or carries the usage."""
        is_last = b'"finish_reason":"' in event or b'"usage":{' in event or b'"response.completed"' in event
        repeats = self._reasoning_content and b'"reasoning":"' in event
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
        self._route.request_id = content.get("id", self._route.request_id)  # some endpoints number the engine's
        content["route"] = self._route.public()
        usage = content.get("usage")
        if isinstance(usage, dict) and "prompt_tokens" in usage:
            details = usage.get("prompt_tokens_details") or {}
            usage["prompt_tokens_details"] = details | {"latent_tokens": self._route.latent_tokens}
        return content


def _dumped(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def repeat_reasoning(content: Body) -> None:
    """Say the thinking text once more as `reasoning_content`, for clients that know only the older name."""
    for choice in content.get("choices") or ():
        for part in (choice.get("message"), choice.get("delta")):
            if isinstance(part, dict) and part.get("reasoning") is not None:
                part["reasoning_content"] = part["reasoning"]


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
        self._body: bytes | None = body
        self._gone = asyncio.ensure_future(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    def replayed(self, body: bytes) -> Receive:
        """The same request once more."""
        self._body = body
        return self.receive

    @property
    def has_left(self) -> bool:
        return self._gone.done()

    async def left(self) -> None:
        await asyncio.shield(self._gone)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left()
        return {"type": "http.disconnect"}
