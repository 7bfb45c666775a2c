"""The application: vLLM's endpoints on our engine, with modes, metrics and readiness; and how it is served."""

import asyncio
import json
import logging
import os
import secrets
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from pydantic import SecretStr
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.logger import configure_logging_from_args
from vllm.v1.metrics.prometheus import get_prometheus_registry

from reasoning_net.bundle import Bundle
from router.policy import RouterError
from server import console
from server.chat import ReasoningModes, parse_options
from server.engine import modes
from server.engine.seam import HybridEngine
from server.engine.start import add_aliases, build_vllm_app, parse_vllm_args, start_engine
from server.errors import BadRequestError, ForbiddenError, LatentserveError
from server.observe.decision_log import DecisionLog
from server.observe.metrics import Metrics
from server.readiness import Readiness
from server.settings import Settings

logger = logging.getLogger("vllm.latentserve.app")


async def create_app(
    engine: HybridEngine, args: Namespace, settings: Settings, bundle: Bundle | None, readiness: Readiness, metrics: Metrics
) -> FastAPI:
    """vLLM's application, and around its generating endpoints ours."""
    app = await build_vllm_app(engine, args)
    # Innermost: vLLM's own middleware (keys, request ids, metrics) sees the request first.
    app.user_middleware.append(
        Middleware(
            ReasoningModes,
            default=settings.default_mode,
            latent_available=engine.hybrid.can_think_latent,
            metrics=metrics,
            reasoning_content=settings.reasoning_content,
            log=DecisionLog(settings.decision_log, settings.decision_log_mib, settings.log_questions)
            if settings.decision_log
            else None,
            log_requests=settings.log_format == "json",
            trace=args.otlp_traces_endpoint is not None,
        )
    )
    app.middleware_stack = app.build_middleware_stack()  # vLLM has built it already
    mount_metrics(app)
    readiness.mount(app, engine)
    mount_router(app, engine, bundle, settings.operator_key)
    if settings.console:
        console.mount(app, available_modes(bundle), is_demo=settings.is_demo)
    return app


def mount_metrics(app: FastAPI) -> None:
    """`GET /metrics` in front of vLLM's, which knows no OpenMetrics and so no exemplars.

    prometheus_client's own choice of a format would write `vllm_…` for `vllm:…` in OpenMetrics, unless any name is allowed.
    """
    registry = get_prometheus_registry()

    def metrics(request: Request) -> Response:
        if "application/openmetrics-text" in request.headers.get("Accept", ""):
            text = openmetrics.generate_latest(registry, escaping=openmetrics.ALLOWUTF8)
            return Response(text, headers={"Content-Type": openmetrics.CONTENT_TYPE_LATEST})
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.routes.insert(0, Route("/metrics", metrics))


def mount_router(app: FastAPI, engine: HybridEngine, bundle: Bundle | None, operator_key: SecretStr | None) -> None:
    """`GET /v1/router`: what decides, and what was measured when it was fitted. `PUT`: an operator switches it."""
    router, manifest = engine.hybrid.router, bundle.manifest if bundle else None
    fixed = {  # the fingerprint reads the whole bundle
        "bundle": bundle.fingerprint() if bundle else None,
        "probe": manifest.probe.model_dump() if manifest and manifest.probe else None,
        "measured": manifest.scores.get("router fit") if manifest else None,
    }

    @app.get("/v1/router")
    async def describe() -> dict[str, Any]:
        return router.describe() | fixed

    @app.put("/v1/router")
    async def switch(request: Request) -> JSONResponse:
        try:
            _check_operator(request, operator_key)
            try:
                options = parse_options(await request.json())
            except json.JSONDecodeError as error:
                raise BadRequestError(f"The body is not JSON: {error}.") from None
            if options.policy is None and options.target is None:
                raise BadRequestError("Name a policy, or one target: explicit_share, accuracy_floor, mean_tokens, p95_seconds.")
            if options.max_cost is not None or options.early or not options.escalate:
                raise BadRequestError("max_cost, early and escalate belong to single requests.")
            try:
                router.switch(options)
            except RouterError as error:
                raise BadRequestError(str(error)) from None
        except LatentserveError as error:
            return JSONResponse(error.body(), error.status)
        return JSONResponse(router.describe() | fixed)


def _check_operator(request: Request, operator_key: SecretStr | None) -> None:
    if operator_key is None:
        raise ForbiddenError("This server has no operator. Start it with LATENTSERVE_OPERATOR_KEY to switch its router.")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(given.encode(), operator_key.get_secret_value().encode()):
        raise ForbiddenError("Only the operator's key may switch the router: Authorization: Bearer KEY.")


def available_modes(bundle: Bundle | None) -> list[str]:
    return modes.available(can_think_latent=bool(bundle and bundle.manifest.reasoning_net))


async def serve(settings: Settings, vllm_flags: Sequence[str]) -> None:
    """Serve until a signal; raises with a message that says what to do when it cannot start."""
    directory = settings.bundle_directory
    bundle = Bundle.load(directory) if directory else None
    if bundle:
        bundle.check_base(settings.model)
    args = parse_vllm_args(settings, vllm_flags, bundle)
    names = available_modes(bundle)
    add_aliases(args, names)
    configure_logging_from_args(args)
    address, sock = setup_server(args, reuse_port=False)
    metrics, readiness = Metrics(), Readiness()
    async with start_engine(args, settings, bundle, metrics) as engine:
        app = await create_app(engine, args, settings, bundle, readiness, metrics)
        warm_up = asyncio.create_task(readiness.check(engine, bundle, names))
        say = logger.info if settings.log_format == "json" else partial(print, flush=True)
        warm_up.add_done_callback(lambda done: None if done.cancelled() else say(_welcome(address, args, readiness, settings)))
        log_config = get_uvicorn_log_config(args)
        shutdown = await serve_http(
            app,
            sock=sock,
            enable_ssl_refresh=args.enable_ssl_refresh,
            host=args.host,
            port=args.port,
            log_level=args.uvicorn_log_level,
            access_log=not args.disable_uvicorn_access_log,
            timeout_keep_alive=int(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5")),
            ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs,
            ssl_cert_reqs=args.ssl_cert_reqs,
            **({"log_config": log_config} if log_config is not None else {}),
        )
        warm_up.cancel()
    try:
        await shutdown
    finally:
        sock.close()


def _welcome(address: str, args: Namespace, readiness: Readiness, settings: Settings) -> str:
    if not readiness.ready:
        return f"Not ready: {readiness.problem}"
    question = (
        "Ann has 5 pens. In January, she finds 3 pens. In February, she gives half of the pens away. "
        "How many pens does Ann have now?"
    )
    invitation = "Open it in a browser, or try" if settings.console else "Try"
    return (
        f"\nReady on {address} (modes: {', '.join(readiness.warm_modes)}). {invitation}:\n\n"
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "{args.served_model_name[0]}", "mode": "latent", '
        f'"messages": [{{"role": "user", "content": "{question}"}}]}}\'\n'
    )
