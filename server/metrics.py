"""Every Prometheus series of ours; vLLM's own are on the same `/metrics`."""

import math
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from router.policy import Mode
from server.route import Route

# From a tiny model's milliseconds to a minute of explicit thinking.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


FALLBACKS = ("latents_not_finite", "score_not_finite", "no_score")


class Metrics:
    """Created once per process: a series cannot be registered twice."""

    def __init__(self) -> None:
        self._requests = Counter(
            "latentserve_requests", "Answered requests by requested and effective mode.", ["requested", "mode", "reason"]
        )
        self._fallbacks = Counter(
            "latentserve_fallbacks", "Requests that could not be answered in the mode chosen.", ["reason"]
        )
        self._stage = Histogram(
            "latentserve_stage_seconds",
            "Time per stage: `read` (prefill, capture, network and probe, as the gateway sees it), `network` (network and "
            "probe in the worker), `request` (from the first to the last byte of work).",
            ["stage", "mode"],
            buckets=_SECONDS,
        )
        self._checks = Counter(
            "latentserve_checked_answers", "Cheap answers of mode auto that were checked, by outcome.", ["outcome"]
        )
        self._drift = Gauge(
            "latentserve_router_drift_psi", "Population stability index of the router's scores; NaN until there are a hundred."
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
        for outcome in ("kept", "escalated"):
            self._checks.labels(outcome)
        for mode in (Mode.DIRECT, Mode.LATENT, Mode.EXPLICIT):
            self._stage.labels("request", mode)
        for reason in FALLBACKS:
            self._fallbacks.labels(reason)

    def fallback(self, reason: str) -> None:
        self._fallbacks.labels(reason).inc()

    def checked(self, *, escalated: bool) -> None:
        self._checks.labels("escalated" if escalated else "kept").inc()

    def watch_drift(self, psi: Callable[[], float | None]) -> None:
        """`psi` is asked at each scrape."""

        def current() -> float:
            value = psi()
            return math.nan if value is None else value

        self._drift.set_function(current)

    def shadowed(self, mode: Mode, shadow: Mode, outcome: str, regret: float = 0.0) -> None:
        self._shadows.labels(mode, shadow, outcome).inc()
        self._regret.labels(mode).inc(max(0.0, regret))

    def answered(self, route: Route, seconds: float) -> None:
        if route.mode is None or route.decision is None:
            return
        self._requests.labels(route.requested, route.mode, route.decision.reason).inc()
        self._stage.labels("request", route.mode).observe(seconds)
        if route.read_seconds is not None:
            self._stage.labels("read", route.mode).observe(route.read_seconds)
        if route.network_seconds is not None:
            self._stage.labels("network", route.mode).observe(route.network_seconds)
