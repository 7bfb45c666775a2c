"""Every Prometheus series of ours; vLLM's own are on the same `/metrics`."""

from prometheus_client import Counter, Histogram

from router.policy import Mode
from server.route import Route

# From a tiny model's milliseconds to a minute of explicit thinking.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


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
        for mode in (Mode.DIRECT, Mode.LATENT, Mode.EXPLICIT):
            self._stage.labels("request", mode)
        for reason in ("latents_not_finite", "score_not_finite"):
            self._fallbacks.labels(reason)

    def fallback(self, reason: str) -> None:
        self._fallbacks.labels(reason).inc()

    def answered(self, route: Route, seconds: float) -> None:
        if route.mode is None:
            return
        self._requests.labels(route.requested, route.mode, route.reason).inc()
        self._stage.labels("request", route.mode).observe(seconds)
        if route.read_seconds is not None:
            self._stage.labels("read", route.mode).observe(route.read_seconds)
        if route.network_seconds is not None:
            self._stage.labels("network", route.mode).observe(route.network_seconds)
