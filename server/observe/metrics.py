"""Every Prometheus series of ours; vLLM's own are on the same `/metrics`.

The latencies carry exemplars, the id of a request in each bucket, for scrapers that ask for OpenMetrics.
"""

import hashlib
import math
from collections.abc import Callable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from router.exits import Ending
from router.policy import Mode
from router.router import Router
from server.observe.record import Record
from server.observe.router_collector import RouterCollector

# From a tiny model's milliseconds to a minute of explicit thinking.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_SHARES = tuple(i / 20 for i in range(1, 21))
_ANY_VALUE = (-100, -30, -10, -3, -1, -0.3, 0, *_SHARES, 3, 10, 30, 100)  # a probability, or a score without bounds
_MAX_KEYS = 100
_MAX_ID = 64
FALLBACKS = ("latents_not_finite", "score_not_finite", "no_score")


class Metrics:
    """Created once per process: a series cannot be registered twice."""

    def __init__(self) -> None:
        self._define_requests()
        self._define_stages_and_tokens()
        self._define_router()
        for outcome in ("kept", "escalated"):
            self._checks.labels(outcome)
        for rule in Ending:
            self._exits.labels(rule)
        for mode in (mode for mode in Mode if mode.thinks_in_text):
            self._unanswered.labels(mode)
        for reason in FALLBACKS:
            self._fallbacks.labels(reason)
        for reason in ("refused", "unreachable"):
            self._file_failures.labels(reason)
        self._failures.labels("unknown", "engine")

    def _define_requests(self) -> None:
        by_mode = ["requested", "mode"]
        self._requests = Counter(
            "latentserve_requests", "Answered requests by requested and effective mode.", [*by_mode, "reason"]
        )
        self._failures = Counter(
            "latentserve_failures", "Requests that got no answer, by what came instead.", ["requested", "type"]
        )
        self._fallbacks = Counter(
            "latentserve_fallbacks", "Requests that could not be answered in the mode chosen.", ["reason"]
        )
        self._unanswered = Counter(
            "latentserve_unanswered", "Replies that ended inside thinking, before there was an answer.", ["mode"]
        )
        self._seconds = Histogram(
            "latentserve_request_seconds",
            "From the receipt of a request to the last byte of its answer.",
            by_mode,
            buckets=_SECONDS,
        )
        self._first = Histogram(
            "latentserve_time_to_first_token_seconds", "From the receipt of a streamed request to its first event.", by_mode,
            buckets=_SECONDS,
        )  # fmt: skip
        self._per_token = Histogram(
            "latentserve_time_per_output_token_seconds", "Of streams, after the first token.", by_mode, buckets=_SECONDS
        )

    def _define_stages_and_tokens(self) -> None:
        self._stage = Histogram(
            "latentserve_stage_seconds",
            "Where the seconds went; the stages add up to the request: `gateway` (up to the engine), `queue` (waiting for room "
            "for latents), `read` (prefill, capture, network and probe), `discarded` (a doubtful answer), `answer`, `respond` "
            "(after the engine's last token).",
            ["stage", "mode"],
            buckets=_SECONDS,
        )
        self._network = Histogram(
            "latentserve_network_seconds",
            "Within `read`: the reasoning network, per batch.",
            ["mode"],
            buckets=_SECONDS,
        )
        self._probe = Histogram(
            "latentserve_probe_seconds", "Within `read`: the difficulty probe, per batch.", ["mode"], buckets=_SECONDS
        )
        self._tokens = Counter(
            "latentserve_tokens", "By kind: prompt (the client's), latent, thinking, answer, discarded.", ["kind", "mode"]
        )
        self._saved = Counter(
            "latentserve_thinking_tokens_saved", "What auto's answers without a chain were expected to have cost with one."
        )
        self._amplification = Histogram(
            "latentserve_amplification", "Generated ÷ prompt tokens of a request, by a hash of its key.", ["key"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )  # fmt: skip
        self._keys: set[str] = set()

    def _define_router(self) -> None:
        self._score = Histogram(
            "latentserve_router_score",
            "P(correct) that decided, of mode auto.",
            ["mode"],
            buckets=_SHARES,
        )
        self._user_probes = Histogram(
            "latentserve_probe_score", "What probes of the operator's own said, by output.", ["probe"], buckets=_ANY_VALUE
        )
        self._checks = Counter(
            "latentserve_checked_answers", "Cheap answers of mode auto that were checked, by outcome.", ["outcome"]
        )
        self._exits = Counter("latentserve_exits", "Chains that ended before the model closed them, by why.", ["rule"])
        self._helper_steps = Counter(
            "latentserve_helper_steps", "Steps of chains that a helper might write, by who did; failed: asked in vain.", ["by"]
        )
        self._helper_tokens = Counter("latentserve_helper_tokens", "Tokens of chains that a helper wrote.")
        self._soft_steps = Counter("latentserve_soft_steps", "Tokens of chains that were fed back as mixtures.")
        self._lost_lines = Counter("latentserve_log_lines_lost", "Lines of the decision log that could not be written.")
        self._in_flight = Gauge("latentserve_requests_in_flight", "Answers that were admitted and have not ended.")
        self._waiting = Gauge(
            "latentserve_requests_waiting", "Of those, the ones that nothing is written of yet: held, or in the engine's queue."
        )
        self._running = Gauge("latentserve_requests_running", "Of those, the ones that do not wait.")
        self._capacity = Gauge("latentserve_requests_capacity", "Answers that are admitted at most: more are refused with 429.")
        self._outstanding = Gauge(
            "latentserve_expected_tokens_outstanding",
            "Tokens that admitted answers, waiting and running, are expected still to generate.",
        )
        self._outstanding_seconds = Gauge(
            "latentserve_expected_seconds_outstanding",
            "Seconds that the engine needs for them at its present pace; NaN until it has written something.",
        )
        self._demotions = Counter(
            "latentserve_demotions", "Answers of mode auto that were not thought through in text, by what stood in the way.",
            ["reason"],
        )  # fmt: skip
        self._drift = Gauge(
            "latentserve_router_drift_psi",
            "Population stability index of this process's last thousand scores; NaN until there are a hundred.",
        )
        self._router = RouterCollector()
        REGISTRY.register(self._router)
        self._file = Gauge(
            "latentserve_router_file_in_force", "Whether the router file could be read and decides; 1 without one, too."
        )
        self._file.set(1)
        self._quota_store = Gauge(
            "latentserve_quota_store_up", "Whether limits of keys are counted for all replicas; 1 without a store, too."
        )
        self._quota_store.set(1)
        self._quota_failures = Counter("latentserve_quota_store_failures", "Answers of the quota store that did not come.")
        self._file_failures = Counter(
            "latentserve_router_file_failures",
            "Router files that were refused (each once), or unreachable (each try).",
            ["reason"],
        )
        self._held = Gauge(
            "latentserve_requests_held",
            "Answers that wait for room for latents, or for a long chain, before the engine's queue.",
        )
        self._shadows = Counter(
            "latentserve_shadows", "Answers of auto compared with another mode's, by both modes and outcome.",
            ["mode", "shadow", "outcome"],
        )  # fmt: skip
        self._regret = Counter(
            "latentserve_shadow_regret",
            "Accuracy that the other mode is estimated to have brought, summed over shadows.",
            ["mode"],
        )

    def lost_line(self) -> None:
        self._lost_lines.inc()

    def demoted(self, reason: str) -> None:
        self._demotions.labels(reason).inc()

    def watch_router(self, router: Router) -> None:
        """It is asked at each scrape."""

        def psi() -> float:
            return math.nan if (value := router.drift.psi) is None else value

        self._drift.set_function(psi)
        self._router.router = router

    def quota_store_failed(self) -> None:
        self._quota_failures.inc()

    def watch_quota_store(self, is_shared: Callable[[], bool]) -> None:
        self._quota_store.set_function(lambda: float(is_shared()))

    def router_file_failed(self, reason: str) -> None:
        self._file_failures.labels(reason).inc()

    def watch_router_file(self, is_in_force: Callable[[], bool]) -> None:
        self._file.set_function(lambda: float(is_in_force()))

    def watch_admission(self, in_flight: Callable[[], int], waiting: Callable[[], int], capacity: int) -> None:
        """`waiting`: as the engine last reported it. What has ended since waits no more; what else the engine does is none."""
        self._in_flight.set_function(in_flight)
        self._waiting.set_function(lambda: min(in_flight(), waiting()))
        self._running.set_function(lambda: max(0, in_flight() - waiting()))
        self._capacity.set(capacity)

    def watch_workload(self, tokens: Callable[[], float], seconds: Callable[[], float]) -> None:
        self._outstanding.set_function(tokens)
        self._outstanding_seconds.set_function(seconds)

    def watch_held(self, held: Callable[[], float]) -> None:
        self._held.set_function(held)

    def shadowed(self, mode: Mode, shadow: Mode, outcome: str, regret: float = 0.0) -> None:
        self._shadows.labels(mode, shadow, outcome).inc()
        self._regret.labels(mode).inc(max(0.0, regret))

    def failed(self, requested: str | None, kind: str) -> None:
        self._failures.labels(requested or "unknown", kind).inc()

    def answered(self, record: Record, key: str | None) -> None:
        """All that one request brings. `key`: the client's, if it has one."""
        if record.mode is None or record.decision is None:
            return
        if record.decision.reason in FALLBACKS:
            self._fallbacks.labels(record.decision.reason).inc()
        if record.confidence is not None:
            self._checks.labels("escalated" if record.escalated else "kept").inc()
        mode, labels, exemplar = record.mode, (record.ask.mode, record.mode), _exemplar(record)
        self._requests.labels(*labels, record.decision.reason).inc()
        self._seconds.labels(*labels).observe(record.seconds, exemplar)
        if record.first_byte is not None:
            first = record.first_byte - record.started
            self._first.labels(*labels).observe(first, exemplar)
            if record.generated_tokens > 1:
                self._per_token.labels(*labels).observe((record.seconds - first) / (record.generated_tokens - 1))
        if record.stages["read"]:
            self._network.labels(mode).observe(record.stages["network"])
            self._probe.labels(mode).observe(record.stages["probe"])
        for stage, start, end in record.timeline():
            self._stage.labels(stage, mode).observe(end - start)
        for kind, count in (
            ("prompt", record.prompt_tokens), ("latent", record.latent_tokens), ("thinking", record.thinking_tokens),
            ("answer", record.generated_tokens - record.thinking_tokens), ("discarded", record.discarded_tokens),
        ):  # fmt: skip
            self._tokens.labels(kind, mode).inc(max(0, count))
        if record.is_unanswered:
            self._unanswered.labels(mode).inc()
        if record.ending:
            self._exits.labels(record.ending).inc()
        if record.help:
            helped = sum(record.help.helped)
            for writer, steps in (
                ("helper", helped),
                ("own", len(record.help.helped) - helped),
                ("failed", record.help.failed),
            ):
                self._helper_steps.labels(writer).inc(steps)
            self._helper_tokens.inc(record.help.tokens)
        if record.soft:
            self._soft_steps.inc(record.soft["steps"])
        for name, value in (record.scores.probes if record.scores else {}).items():
            if math.isfinite(value):
                self._user_probes.labels(name).observe(value)
        if record.ask.mode == "auto":
            if record.score is not None:
                self._score.labels(mode).observe(record.score)
            if not mode.thinks_in_text and record.scores and record.scores.tokens:
                self._saved.inc(max(0.0, record.scores.tokens - record.generated_tokens))
        generated = record.generated_tokens + record.discarded_tokens
        self._amplification.labels(self._key(key)).observe(generated / max(1, record.prompt_tokens))

    def _key(self, key: str | None) -> str:
        """A label that tells keys apart and gives none away; of more than a hundred keys the rest share one."""
        if key is None:
            return "none"
        label = hashlib.sha256(key.encode()).hexdigest()[:8]
        if label not in self._keys and len(self._keys) >= _MAX_KEYS:
            return "others"
        self._keys.add(label)
        return label


def _exemplar(record: Record) -> dict[str, str]:
    """A request to look at, where a bucket is. OpenMetrics takes 128 characters; a client may have chosen the id."""
    trace = {"trace_id": record.trace_id} if record.trace_id else {}
    return {"request_id": record.request_id[:_MAX_ID], **trace}
