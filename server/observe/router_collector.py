"""What Prometheus learns of the router: which version decides, and how often its scores were in which part."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.router import Router


class RouterCollector(Collector):
    """Parts are counted, and their reference given, so that the drift of all replicas together can be computed: an index of
    each could not be added up."""

    router: Router | None = None

    def collect(self) -> Iterator[Metric]:
        info = InfoMetricFamily("latentserve_router", "The policy in force, and its version; replicas should agree.")
        scores = CounterMetricFamily(
            "latentserve_router_part_scores",
            "Scores of mode auto, by which tenth of the calibration's they fall into.",
            labels=["part"],
        )
        shares = GaugeMetricFamily("latentserve_router_part_share", "Of the calibration's scores, by part.", labels=["part"])
        if self.router is not None:
            info.add_metric([], {"policy": self.router.policy.name, "version": self.router.version})
            drift = self.router.drift
            for part, (seen, share) in enumerate(zip(drift.seen, drift.expected, strict=True)):
                scores.add_metric([str(part)], seen)
                shares.add_metric([str(part)], share)
        yield from (info, scores, shares)
