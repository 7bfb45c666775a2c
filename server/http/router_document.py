"""What an operator says about the router: the body of `PUT /v1/router`, and the document that `--router-file` names."""

import json

from pydantic import Field, field_validator

from router.calibration import Target
from router.policy import RouterError
from router.router import Options, Router
from server.http.contract import parse_options
from server.http.errors import BadRequestError


class RouterDocument(Options):
    version: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.+-]{1,64}$",
        description="By which replicas are compared; a hash of the document by default.",
    )

    @field_validator("version", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def switch(router: Router, raw: bytes) -> None:
    """Put what the document says in force, all of it or nothing. Raises `BadRequestError`."""
    try:
        options = parse_options(json.loads(raw), RouterDocument)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not JSON: {error}.") from None
    if options.policy is None and options.target is None:
        raise BadRequestError(f"Name a policy, or one target: {', '.join(Target.model_fields)}.")
    if options.max_cost is not None or options.early or not options.escalate:
        raise BadRequestError("max_cost, early and escalate belong to single requests.")
    try:
        router.switch(options, options.version)
    except RouterError as error:
        raise BadRequestError(str(error)) from None
