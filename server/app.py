"""The application: vLLM's endpoints on our engine, with modes, metrics and readiness; and how it is served."""

import asyncio
import logging
import math
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from reasoning_net.bundle import Bundle
from reasoning_net.tokenizer_check import warning
from server import console
from server.engine import modes
from server.engine.base import Base, base_of
from server.engine.front import api_keys, build_vllm_app, listen, metrics_registry, request_fields, template_kwargs
from server.engine.readiness import Readiness
from server.engine.seam import HybridEngine
from server.engine.serving import serve_app
from server.engine.start import adapters, add_aliases, parse_vllm_args, start_engine, start_helper
from server.http.admission import Admission
from server.http.contract import Terms
from server.http.keys import KeyGuard, KeyRing
from server.http.middleware import Bounds, ReasoningModes
from server.http.openapi import describe_modes
from server.http.quota_store import SharedStore
from server.http.quotas import Quotas
from server.http.router_api import mount_router
from server.http.routes import keep_supported
from server.observe.decision_log import DecisionLog
from server.observe.metrics import Metrics
from server.observe.observers import Observers
from server.observe.workload import Workload, known_tokens
from server.router_file import RouterFile
from server.settings import Settings

logger = logging.getLogger("vllm.latentserve.app")


async def create_app(
    engine: HybridEngine, args: Namespace, settings: Settings, bundle: Bundle | None, readiness: Readiness, metrics: Metrics,
    admission: Admission, workload: Workload, quotas: Quotas, base: Base, names: list[str],
    router_file: RouterFile | None = None,
) -> FastAPI:  # fmt: skip
    """vLLM's application, and around its endpoints ours."""
    app, hybrid = await build_vllm_app(engine, args), engine.hybrid
    keep_supported(app)
    terms = Terms(
        base.default_mode(settings), hybrid.can_think_latent, template_kwargs(engine, args), request_fields(app),
        settings.reasoning_content, settings.budgets_by_effort, base.layout.thinks_in_text,
        adapters(args),
    )  # fmt: skip
    if keys := KeyRing(api_keys(args, settings.operator_key), settings.api_keys_file):
        app.user_middleware.append(Middleware(KeyGuard, keys=keys))
    # Innermost: vLLM's own middleware (request ids, metrics) sees the request first.
    app.user_middleware.append(
        Middleware(
            ReasoningModes,
            terms=terms,
            bounds=Bounds(settings.max_body_mib, settings.client_timeout_seconds, settings.timeout_seconds),
            admission=admission,
            workload=workload,
            quotas=quotas,
            observers=observers(args, settings, metrics),
        )
    )
    app.middleware_stack = app.build_middleware_stack()  # vLLM has built it already
    mount_metrics(app)
    readiness.mount(app, engine, admission)
    mount_router(app, hybrid.router, bundle, settings.operator_key, hybrid.probes, router_file)
    describe_modes(app, names, hybrid.max_latents, version("latentserve"))
    if settings.console:
        console.mount(app, names, is_demo=settings.is_demo, explains=hybrid.can_explain)
    return app


def observers(args: Namespace, settings: Settings, metrics: Metrics) -> Observers:
    decisions = (
        DecisionLog(settings.decision_log, settings.decision_log_mib, settings.log_questions, metrics.lost_line)
        if settings.decision_log
        else None
    )
    has_traces = args.otlp_traces_endpoint is not None
    return Observers(metrics, decisions, log_requests=settings.log_format == "json", trace=has_traces)


def new_admission(engine: HybridEngine, metrics: Metrics) -> Admission:
    """Room for what the engine writes at once, and for as much again that waits, or what `--max-num-queued-reqs` says."""
    scheduler = engine.vllm_config.scheduler_config
    queued = scheduler.max_num_queued_reqs
    admission = Admission(scheduler.max_num_seqs, scheduler.max_num_seqs if queued is None else queued)
    engine.load = lambda: admission.load
    metrics.watch_admission(lambda: admission.in_flight, lambda: engine.waiting, admission.most)
    return admission


def new_workload(engine: HybridEngine, metrics: Metrics) -> Workload:
    """What is still to be written, and how long that takes the engine at its present pace."""
    workload, pace = Workload(known_tokens(engine.hybrid.router.calibration), engine.unseen_tokens), engine.pace
    metrics.watch_workload(lambda: workload.tokens, lambda: workload.tokens * pace.seconds_per_token if pace else math.nan)
    return workload


def new_quotas(settings: Settings, metrics: Metrics) -> Quotas:
    """Of keys: counted here, or for all replicas."""
    if settings.quota_store is None:
        return Quotas()
    store = SharedStore(settings.quota_store.get_secret_value(), metrics.quota_store_failed)
    metrics.watch_quota_store(lambda: store.is_shared)
    return Quotas(store)


async def load_router_file(engine: HybridEngine, settings: Settings, metrics: Metrics) -> RouterFile | None:
    """Its document is in force from here on. Raises `ConfigurationError`."""
    if settings.router_file is None:
        return None
    file = RouterFile(settings.router_file, engine.hybrid.router, metrics.router_file_failed)
    await file.load()
    metrics.watch_router_file(lambda: file.is_in_force)
    return file


def advice(engine: HybridEngine, bundle: Bundle | None, base: Base) -> Iterator[str]:
    """What an operator should know of this base and its bundle."""
    if bundle and (audit := bundle.manifest.audit) and audit["verdict"] == "ornament":
        yield (
            f"The latents of {bundle.directory} are an ornament: answers are as right with others in their place (necessity "
            f"{audit['necessity']:.2f}, `latentserve analyse latents`). Mode direct costs less."
        )
    if base.advice:
        yield base.advice
    if missing := engine.hybrid.router.advice:
        yield missing
    if said := warning(base.tokenizer, base.layout, has_latents=engine.hybrid.can_think_latent):
        yield said


def mount_metrics(app: FastAPI) -> None:
    """`GET /metrics` in front of vLLM's, which knows no OpenMetrics and so no exemplars.

    prometheus_client's own choice of a format would write `vllm_…` for `vllm:…` in OpenMetrics, unless any name is allowed.
    """
    registry = metrics_registry()

    def metrics(request: Request) -> Response:
        if "application/openmetrics-text" in request.headers.get("Accept", ""):
            text = openmetrics.generate_latest(registry, escaping=openmetrics.ALLOWUTF8)
            return Response(text, headers={"Content-Type": openmetrics.CONTENT_TYPE_LATEST})
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.routes.insert(0, Route("/metrics", metrics))


def available_modes(bundle: Bundle | None, base: Base, *, can_mix: bool) -> list[str]:
    manifest = bundle.manifest if bundle else None
    return modes.available(
        can_think_latent=bool(manifest and manifest.reasoning_net),
        can_think_on=bool(manifest and manifest.thinks_on),
        can_think_in_text=base.layout.thinks_in_text,
        can_mix=can_mix,
    )


@dataclass(frozen=True)
class Service:
    """An engine, and the application on it, for whoever serves that."""

    app: FastAPI
    engine: HybridEngine
    admission: Admission
    readiness: Readiness
    bundle: Bundle | None
    modes: list[str]

    async def warm_up(self) -> None:
        """Then `readiness` says what `/ready` does."""
        await self.readiness.check(self.engine, self.bundle, self.modes)


@asynccontextmanager
async def start_service(args: Namespace, settings: Settings, bundle: Bundle | None) -> AsyncIterator[Service]:
    """With vLLM's flags from `parse_vllm_args`. Not yet warm; its engine is shut down on exit."""
    base = base_of(args, settings, bundle)
    names = available_modes(bundle, base, can_mix=settings.soft_thinking)
    add_aliases(args, names)
    helper = await start_helper(settings, args)
    readiness = Readiness()
    async with start_engine(args, settings, bundle, base, helper) as engine:
        metrics = engine.hybrid.metrics
        for one in advice(engine, bundle, base):
            logger.warning(one)
        admission, workload = new_admission(engine, metrics), new_workload(engine, metrics)
        quotas = new_quotas(settings, metrics)
        router_file = await load_router_file(engine, settings, metrics)
        app = await create_app(
            engine, args, settings, bundle, readiness, metrics, admission, workload, quotas, base, names, router_file
        )
        watching = asyncio.create_task(router_file.watch(settings.router_file_seconds)) if router_file else None
        try:
            yield Service(app, engine, admission, readiness, bundle, names)
        finally:
            if watching:
                watching.cancel()
            await quotas.store.close()


async def serve(settings: Settings, vllm_flags: Sequence[str], bundle: Bundle | None) -> None:
    """Serve until a signal; raises with a message that says what to do when it cannot start, or when its engine dies."""
    args = parse_vllm_args(settings, vllm_flags, bundle)
    address, sock = listen(args)
    async with start_service(args, settings, bundle) as service:
        warm_up = asyncio.create_task(service.warm_up())
        say = logger.info if settings.log_format == "json" else partial(print, flush=True)
        welcome = partial(_welcome, address, args, service.readiness, settings)
        warm_up.add_done_callback(lambda done: None if done.cancelled() else say(welcome()))
        try:
            await serve_app(service.app, sock, args, settings, service.engine, service.admission)
        finally:
            warm_up.cancel()


def _welcome(address: str, args: Namespace, readiness: Readiness, settings: Settings) -> str:
    if not readiness.ready:
        return f"Not ready: {readiness.problem}"
    question = (
        "Ann has 5 pens. In January, she finds 3 pens. In February, she gives half of the pens away. "
        "How many pens does Ann have now?"
    )
    mode = next(mode for mode in ("latent", "auto", *readiness.warm_modes) if mode in readiness.warm_modes)
    invitation = "Open it in a browser, or try" if settings.console else "Try"
    return (
        f"\nReady on {address} (modes: {', '.join(readiness.warm_modes)}). {invitation}:\n\n"
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "{args.served_model_name[0]}", "mode": "{mode}", '
        f'"messages": [{{"role": "user", "content": "{question}"}}]}}\'\n'
    )
