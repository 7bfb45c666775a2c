"""`/v1/router`: what decides, and what was measured when it was fitted; an operator switches it."""

import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import SecretStr

from reasoning_net.bundle import Bundle
from router.router import Router
from router.user_probe import ProbeFile
from server.http.errors import ConflictError, ForbiddenError, LatentserveError
from server.http.router_document import RouterDocument, switch
from server.router_file import RouterFile

_OPTIONS = {"requestBody": {"required": True, "content": {"application/json": {"schema": RouterDocument.model_json_schema()}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No such policy, or a target out of reach."},
    403: {"description": "Not the operator's key."},
    409: {"description": "A router file decides, for all replicas."},
}


def mount_router(
    app: FastAPI, router: Router, bundle: Bundle | None, operator_key: SecretStr | None, probes: Sequence[ProbeFile] = (),
    file: RouterFile | None = None,
) -> None:  # fmt: skip
    manifest = bundle.manifest if bundle else None
    fixed = {  # the fingerprint reads the whole bundle
        "bundle": bundle.fingerprint() if bundle else None,
        "probe": manifest.probe.model_dump() if manifest and manifest.probe else None,
        "measured": manifest.scores.get("router fit") if manifest else None,
        "latents": manifest.audit if manifest else None,
        "probes": [probe.config.model_dump() for probe in probes],
    }

    def shown() -> dict[str, Any]:
        of_file = {"name": file.name, "in_force": file.is_in_force} if file else None
        return router.describe() | fixed | {"file": of_file}

    @app.get("/v1/router")
    async def describe() -> dict[str, Any]:
        """What decides, its calibration, and what was measured when it was fitted."""
        return shown()

    @app.put("/v1/router", openapi_extra=_OPTIONS, responses=_REFUSALS)
    async def put(request: Request) -> Response:
        """Put another policy, or another calibrated point, in force: the operator's key."""
        try:
            _check_operator(request, operator_key)
            if file:
                raise ConflictError(f"The policy of all replicas comes from {file.name}: change it there.")
            switch(router, await request.body())
        except LatentserveError as error:
            return error.response()
        return JSONResponse(shown())


def _check_operator(request: Request, operator_key: SecretStr | None) -> None:
    if operator_key is None:
        raise ForbiddenError("This server has no operator. Start it with LATENTSERVE_OPERATOR_KEY to switch its router.")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(given.encode(), operator_key.get_secret_value().encode()):
        raise ForbiddenError("Only the operator's key may switch the router: Authorization: Bearer KEY.")
