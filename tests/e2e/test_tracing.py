"""Spans and JSON logs of a real server, whose exporter sends to a real receiver."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from reasoning_net.demo.questions import Question
from tests.conftest import NUM_LATENTS, running_server


@dataclass
class Receiver(TraceServiceServicer):
    payload: bytes = b""
    spans: list[Span] = field(default_factory=list)

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:  # noqa: N802
        self.payload += request.SerializeToString()
        self.spans += [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


@dataclass
class Observed:
    url: str
    receiver: Receiver
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def ask(self, asked: Question, path: str = "chat/completions", **options: Any) -> "Asked":
        """A request from a client that traces, too."""
        trace, parent = secrets.token_hex(16), secrets.token_hex(8)
        body = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": asked.question}], **options}
        headers = {"traceparent": f"00-{trace}-{parent}-01", "tracestate": "vendor=1", "X-Session-ID": f"session-{trace}"}
        response = httpx.post(f"{self.url}/v1/{path}", json=body, headers=headers, timeout=60)
        (root,) = until(lambda: self._spans(trace, bytes.fromhex(parent)))
        return Asked(response, trace, root, self._spans(trace, root.span_id))

    def _spans(self, trace: str, parent: bytes) -> list[Span]:
        return [span for span in self.receiver.spans if span.trace_id.hex() == trace and span.parent_span_id == parent]


@dataclass
class Asked:
    response: httpx.Response
    trace: str
    root: Span
    """The one span whose parent is the client's."""
    children: list[Span]

    @property
    def stages(self) -> dict[str, Span]:
        return {span.name: span for span in self.children if span.name != "llm_request"}

    @property
    def passes(self) -> dict[str, Span]:
        """vLLM's spans by its ids."""
        return {str(attributes(span)["gen_ai.request.id"]): span for span in self.children if span.name == "llm_request"}


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def until(get: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := get()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    receiver, log = Receiver(), tmp_path_factory.mktemp("observed") / "log.txt"
    collector = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(receiver, collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSERVE_LOG_FORMAT", "json")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds; a batch is sent that often
        with running_server(log, "--otlp-traces-endpoint", f"http://127.0.0.1:{port}") as url:
            yield Observed(url, receiver, log)
    collector.stop(None)


@pytest.mark.parametrize("mode", ["latent", "direct", "explicit"])
def test_stages_and_vllms_spans_are_within_the_requests(observed: Observed, asked: list[Question], mode: str) -> None:
    one = observed.ask(asked[0], mode=mode)
    root, known, answer = one.root, attributes(one.root), one.response.json()
    assert (root.name, root.trace_state, root.status.code) == ("latentserve chat", "vendor=1", Status.STATUS_CODE_UNSET)
    for span in one.children:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    read = {"read"} if mode == "latent" else set()
    assert set(one.stages) == {"gateway", "answer", "respond"} | read
    assert sum(map(seconds, one.stages.values())) == pytest.approx(seconds(root), rel=0.05)
    assert len(one.passes) == 1
    assert all(name.startswith(answer["id"] + "-") for name in one.passes), (
        "engine requests are the server's, the label is ours"
    )
    if read:
        parts = attributes(one.stages["read"])
        assert 0 < parts["latentserve.probe_seconds"] < parts["latentserve.network_seconds"] < seconds(one.stages["read"])
    assert known["latentserve.requested_mode"] == known["latentserve.mode"] == mode
    assert known["gen_ai.request.id"] == answer["id"]
    assert known["gen_ai.conversation.id"] == f"session-{one.trace}"
    usage = answer["usage"]
    assert known["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert known["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert (known["gen_ai.usage.reasoning.output_tokens"] > 0) == (mode == "explicit")
    assert known["latentserve.latent_tokens"] == (NUM_LATENTS if read else 0)
    assert known["http.response.status_code"] == 200


def test_an_answer_that_was_discarded_has_its_stage_streamed_or_not(observed: Observed, asked: list[Question]) -> None:
    doubtful = next(q for q in asked if observed.ask(q, mode="auto").response.json()["route"]["escalated"])
    for options in ({}, {"stream": True, "router": {"early": True}}):
        one = observed.ask(doubtful, mode="auto", **options)
        assert set(one.stages) == {"gateway", "read", "discarded", "answer", "respond"}
        ends = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in one.stages.values()]
        assert all(after[0] >= before[1] - 1e6 for before, after in zip(sorted(ends), sorted(ends)[1:], strict=False))
        known = attributes(one.root)
        assert (known["latentserve.mode"], known["latentserve.policy"]) == ("explicit", "utility")
        assert known["latentserve.escalated"]
        assert 0 <= known["latentserve.score"] <= 1
    events = [json.loads(line[6:]) for line in one.response.text.splitlines() if line.startswith("data: {")]
    assert {event["id"] for event in events} == {known["gen_ai.request.id"]}  # one answer to the client, two runs in the engine


@pytest.mark.parametrize("path", ["responses", "messages"])
def test_other_endpoints_are_traced_too(observed: Observed, asked: list[Question], path: str) -> None:
    one = observed.ask(asked[3], path, mode="latent", num_latent_tokens="auto", input=asked[3].question, max_tokens=64)
    assert one.root.name == f"latentserve {path}"
    assert attributes(one.root)["gen_ai.request.id"] in one.response.text
    assert len(one.passes) == 2
    assert all(name.startswith(attributes(one.root)["gen_ai.request.id"]) for name in one.passes)


def test_failures_are_errors_and_routing_alone_has_a_span(observed: Observed, asked: list[Question]) -> None:
    for options, id_is_known in (({"mode": "often"}, False), ({"mode": "latent", "num_latent_tokens": 999}, True)):
        one = observed.ask(asked[0], **options)
        assert one.response.status_code == attributes(one.root)["http.response.status_code"] == 400
        assert one.root.status.code == Status.STATUS_CODE_ERROR
        assert attributes(one.root)["error.type"] == "invalid"
        assert ("gen_ai.request.id" in attributes(one.root)) == id_is_known
    routed = observed.ask(asked[0], "route")
    assert routed.root.name == "latentserve route"
    assert set(routed.stages) == {"gateway", "queue", "read"}


def test_loggers_write_objects_and_each_routed_request_has_one(observed: Observed, asked: list[Question]) -> None:
    answered = observed.ask(asked[1], mode="latent")
    refused = observed.ask(asked[1], mode="latent", num_latent_tokens=999)
    answer = answered.response.json()

    def requests() -> dict[str, dict[str, Any]]:
        return {line["trace_id"]: line for line in observed.lines() if line["message"] == "request"}

    lines = until(lambda: requests() if {answered.trace, refused.trace} <= requests().keys() else {})
    line, failed = lines[answered.trace], lines[refused.trace]
    assert (line["request_id"], line["requested"], line["mode"]) == (answer["id"], "latent", "latent")
    assert (line["status"], line["failure"], line["reason"]) == (200, None, "requested")
    assert (line["session_id"], failed["session_id"]) == (f"session-{answered.trace}", f"session-{refused.trace}")
    assert line["generated_tokens"] == answer["usage"]["completion_tokens"]
    stages = dict(line["stages"])
    assert 0 < stages.pop("probe") < stages.pop("network") < stages["read"]
    assert sum(stages.values()) == pytest.approx(line["seconds"], rel=0.05)
    assert (failed["status"], failed["failure"], failed["mode"]) == (400, "invalid", None)
    loggers = {line["logger"] for line in observed.lines()}
    assert {"uvicorn.access", "uvicorn.error", "vllm.v1.engine.core", "vllm.latentserve.requests"} <= loggers
    assert all(line["time"] and line["level"] for line in observed.lines())


def test_nothing_that_was_asked_or_answered_is_observed(observed: Observed, asked: list[Question]) -> None:
    answer = observed.ask(asked[2], mode="explicit").response.json()["choices"][0]["message"]
    observed_text = observed.receiver.payload.decode(errors="replace") + observed.log.read_text()
    for text in (asked[2].question, answer["content"], answer["reasoning"]):
        words = text.split()
        assert not any(" ".join(words[at : at + 5]) in observed_text for at in range(len(words) - 4))
