"""`/v1/router`: what decides, and what was measured when it was fitted; an operator switches it."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import SecretStr

from reasoning_net.bundle import Bundle
from router.calibration import Target
from router.policy import RouterError
from router.router import Options, Router
from router.user_probe import ProbeFile
from server.http.contract import parse_options
from server.http.errors import BadRequestError, ForbiddenError, LatentserveError

_OPTIONS = {"requestBody": {"required": True, "content": {"application/json": {"schema": Options.model_json_schema()}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No such policy, or a target out of reach."},
    403: {"description": "Not the operator's key."},
}


def mount_router(
    app: FastAPI, router: Router, bundle: Bundle | None, operator_key: SecretStr | None, probes: Sequence[ProbeFile] = ()
) -> None:
    manifest = bundle.manifest if bundle else None
    fixed = {  # the fingerprint reads the whole bundle
        "bundle": bundle.fingerprint() if bundle else None,
        "probe": manifest.probe.model_dump() if manifest and manifest.probe else None,
        "measured": manifest.scores.get("router fit") if manifest else None,
        "latents": manifest.audit if manifest else None,
        "probes": [probe.config.model_dump() for probe in probes],
    }

    @app.get("/v1/router")
    async def describe() -> dict[str, Any]:
        """What decides, its calibration, and what was measured when it was fitted."""
        return router.describe() | fixed

    @app.put("/v1/router", openapi_extra=_OPTIONS, responses=_REFUSALS)
    async def switch(request: Request) -> Response:
        """Put another policy, or another calibrated point, in force: the operator's key."""
        try:
            _check_operator(request, operator_key)
            _switch(router, await request.body())
        except LatentserveError as error:
            return error.response()
        return JSONResponse(router.describe() | fixed)


def _switch(router: Router, body: bytes) -> None:
    try:
        options = parse_options(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not JSON: {error}.") from None
    if options.policy is None and options.target is None:
        raise BadRequestError(f"Name a policy, or one target: {', '.join(Target.model_fields)}.")
    if options.max_cost is not None or options.early or not options.escalate:
        raise BadRequestError("max_cost, early and escalate belong to single requests.")
    try:
        router.switch(options)
    except RouterError as error:
        raise BadRequestError(str(error)) from None


def _check_operator(request: Request, operator_key: SecretStr | None) -> None:
    if operator_key is None:
        raise ForbiddenError("This server has no operator. Start it with LATENTSERVE_OPERATOR_KEY to switch its router.")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(given.encode(), operator_key.get_secret_value().encode()):
        raise ForbiddenError("Only the operator's key may switch the router: Authorization: Bearer KEY.")
