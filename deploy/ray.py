"""Behind Ray Serve: a replica owns one engine and serves our application on it; replicas come and go with the expected work.

`serve run deploy/ray.yaml`, in a checkout that is on every node's PYTHONPATH, with what `requirements-ray.txt` names. Serve's
own deployment of LLMs is not used: it imports modules of vLLM that are gone.
"""

import math
from contextlib import AsyncExitStack
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, field_validator
from ray import serve

from server.settings import Settings

SECONDS_OUTSTANDING = "latentserve_expected_seconds_outstanding"
_SERVES = {"host", "port", "drain_seconds"}


class Options(BaseModel, extra="forbid"):
    """What `latentserve serve` takes, as `args` of the application in `ray.yaml`."""

    settings: dict[str, Any] = {}
    """Ours, by their names in `server.settings`: `bundle`, `default_mode`, …; host and port are Serve's."""
    vllm_flags: list[str] = []

    @field_validator("settings")
    @classmethod
    def _known_and_ours(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Before a replica is started for them."""
        if taken := sorted(_SERVES & values.keys()):
            raise ValueError(f"not ours but Serve's: {', '.join(taken)} (http_options, graceful_shutdown_timeout_s)")
        Settings(**values)
        return values


def seconds_outstanding(registry: CollectorRegistry) -> float:
    """That the engine needs for what was let in and has not ended; none while it has no pace yet, having written nothing."""
    (metric,) = registry.restricted_registry([SECONDS_OUTSTANDING]).collect()
    (sample,) = metric.samples
    return 0.0 if math.isnan(sample.value) else sample.value


@serve.deployment
@serve.ingress()
class Replica:
    """Serve lets nobody in before it is warm, and ends it when the last of its answers has ended."""

    async def __init__(self, options: Options) -> None:
        from server.launch import prepare

        settings, bundle = prepare(Settings(**options.settings), options.vllm_flags)
        # What reads the environment as it is imported.
        from server.app import start_service
        from server.engine.front import metrics_registry
        from server.engine.start import parse_vllm_args
        from server.engine.worker.lifetime import sockets_directory

        self._registry = metrics_registry()
        self._stack = AsyncExitStack()
        self._stack.enter_context(sockets_directory())
        args = parse_vllm_args(settings, options.vllm_flags, bundle)
        self._service = await self._stack.enter_async_context(start_service(args, settings, bundle))
        await self._service.warm_up()
        if problem := self._service.readiness.problem:
            raise RuntimeError(f"not ready: {problem}")

    async def __serve_build_asgi_app__(self) -> Any:
        return self._service.app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {SECONDS_OUTSTANDING: seconds_outstanding(self._registry)}

    async def check_health(self) -> None:
        if self._service.engine.errored:
            raise RuntimeError("the engine has died")

    async def __del__(self) -> None:
        """Serve calls it once, when nothing is in flight any more. Killed, the replica takes its engine with it."""
        await self._stack.aclose()


class Load(Protocol):
    """What of `ray.serve.config.AutoscalingContext` is read."""

    aggregated_metrics: dict[str, dict[Any, float]] | None
    total_queued_requests: float
    total_running_requests: float


class ExpectedWork:
    """As many replicas as leave each so many expected seconds of work. Requests in flight would be a poor measure: one that
    thinks in text is worth dozens that do not.

    Serve bounds, delays and smooths what is wanted (`autoscaling_config`).
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds

    def __call__(self, load: Load) -> tuple[float, dict[str, Any]]:
        seconds = sum((load.aggregated_metrics or {}).get(SECONDS_OUTSTANDING, {}).values())
        # What waits in Serve's proxies has been read by nobody: it is taken to be like what runs.
        if load.total_running_requests:
            seconds *= 1 + load.total_queued_requests / load.total_running_requests
        return seconds / self._target_seconds, {}


def app(options: Options) -> serve.Application:
    """What `import_path` names."""
    return Replica.bind(options)
