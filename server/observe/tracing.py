"""A request's OpenTelemetry spans: one for all of it, and within it one a stage and vLLM's own for each of its passes.

The exporter is the one that vLLM sets up in this process for `--otlp-traces-endpoint` (and OTEL_EXPORTER_OTLP_TRACES_PROTOCOL).
Names are OpenTelemetry's for generative AI; vLLM's own for the id that its spans share with ours. No span holds text of a
question or an answer.
"""

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, get_tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.observe.record import Record

_PROPAGATOR = TraceContextTextMapPropagator()


class Trace:
    """Of one request, from its receipt on."""

    def __init__(self, path: str, headers: Mapping[str, str], started: float) -> None:
        """`headers`: the client's, with its span if it has one. `started`: on the clock of `time.perf_counter`."""
        self._offset = time.time_ns() - time.perf_counter_ns()
        self._tracer = get_tracer("latentserve")
        self._span: Span = self._tracer.start_span(
            f"latentserve {path.split('/')[2]}",
            _PROPAGATOR.extract(headers),
            SpanKind.SERVER,
            {"http.request.method": "POST", "url.path": path},
            start_time=self._ns(started),
        )
        self._context = set_span_in_context(self._span)

    @property
    def id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def headers(self) -> dict[str, str]:
        """What makes the spans of those who get it children of ours."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context)
        return carrier

    def end(self, record: Record) -> None:
        for stage, start, end in record.timeline():
            if end > start:
                span = self._tracer.start_span(stage, self._context, start_time=self._ns(start))
                if stage == "read":
                    parts = (("network", record.stages["network"]), ("probe", record.stages["probe"]))
                    span.set_attributes({f"latentserve.{part}_seconds": seconds for part, seconds in parts})
                span.end(self._ns(end))
        for start, end in record.help.spans if record.help else ():
            self._tracer.start_span("helper", self._context, start_time=self._ns(start)).end(self._ns(end))
        known: dict[str, Any] = {
            "gen_ai.request.id": record.request_id,
            "gen_ai.conversation.id": record.session_id,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.generated_tokens,
            "gen_ai.usage.reasoning.output_tokens": record.thinking_tokens,
            "latentserve.requested_mode": record.ask.mode,
            "latentserve.mode": record.mode,
            "latentserve.reason": record.decision.reason if record.decision else None,
            "latentserve.policy": record.policy.name if record.policy else None,
            "latentserve.score": record.score,
            "latentserve.latent_tokens": record.latent_tokens,
            "latentserve.discarded_tokens": record.discarded_tokens,
            "latentserve.escalated": record.escalated,
        }
        self._span.set_attributes({name: value for name, value in known.items() if value is not None})
        self._end(record.status, record.failure, record.started + record.seconds)

    def refuse(self, status: int, failure: str) -> None:
        """End where there was nothing to route."""
        self._end(status, failure, time.perf_counter())

    def _end(self, status: int | None, failure: str | None, ended: float) -> None:
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if failure is not None:
            self._span.set_attribute("error.type", failure)
            self._span.set_status(Status(StatusCode.ERROR, failure))
        self._span.end(self._ns(ended))

    def _ns(self, seconds: float) -> int:
        return self._offset + int(seconds * 1e9)
