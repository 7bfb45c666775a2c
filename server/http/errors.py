"""Errors that our own layer answers with; vLLM's layer maps its own (`vllm.exceptions`) to the same shape.

LatentserveError
├── BadRequestError             400  the request contradicts itself, or asks for what is not there
├── UnauthorizedError           401  the key is missing or wrong
├── ForbiddenError              403  the key may not do that
├── ConflictError               409  it is decided elsewhere
├── SlowClientError             408  the body did not come in time
├── TooLargeError               413  the body is larger than the server reads
├── UnsupportedError            415  the body is no JSON, or compressed
├── OverloadedError             429  no room: with Retry-After, and X-Reject-Reason
│   └── KeyLimitError           429  a limit of the key
├── UnavailableError            503  the server is shutting down, or its engine has died
└── DeadlineError               504  the answer took longer than the request, or the server, allows
"""

import json
from typing import Any

from starlette.responses import Response

MESSAGES_PATH, RESPONSES_PATH, REASON_HEADER = "/v1/messages", "/v1/responses", "X-Reject-Reason"


class LatentserveError(Exception):
    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def content(self, path: str) -> dict[str, Any]:
        """In Anthropic's shape on its endpoints, else in OpenAI's."""
        error = {"type": self.type, "message": self.message}
        if path.startswith(MESSAGES_PATH):
            return {"type": "error", "error": error}
        return {"error": error | {"param": self.param, "code": self.status}}

    def event(self, path: str) -> bytes:
        """As the last event of a stream."""
        if path.startswith(MESSAGES_PATH):
            return b"event: error\ndata: " + json.dumps(self.content(path)).encode() + b"\n\n"
        if path.startswith(RESPONSES_PATH):
            error = {"type": "error", "code": str(self.status), "message": self.message, "param": self.param}
            return b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"
        return b"data: " + json.dumps(self.content(path)).encode() + b"\n\ndata: [DONE]\n\n"

    def response(self, path: str = "") -> Response:
        """In ASCII: it may quote what UTF-8 cannot encode."""
        return Response(json.dumps(self.content(path)), self.status, self.headers, media_type="application/json")


class BadRequestError(LatentserveError):
    status = 400
    type = "BadRequestError"


class UnauthorizedError(LatentserveError):
    status = 401
    type = "AuthenticationError"


class ForbiddenError(LatentserveError):
    status = 403
    type = "PermissionDeniedError"


class ConflictError(LatentserveError):
    status = 409
    type = "ConflictError"


class SlowClientError(LatentserveError):
    status = 408
    type = "TimeoutError"


class TooLargeError(LatentserveError):
    status = 413
    type = "BadRequestError"


class UnsupportedError(LatentserveError):
    status = 415
    type = "BadRequestError"


class _TryAgainError(LatentserveError):
    """With what was full, and the seconds after which it is worth another try."""

    def __init__(self, message: str, reason: str, retry_after: int) -> None:
        super().__init__(message)
        self.reason, self.retry_after = reason, retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after), REASON_HEADER: self.reason}


class OverloadedError(_TryAgainError):
    status = 429
    type = "RateLimitError"


class KeyLimitError(OverloadedError):
    """A limit of the key is reached."""


class UnavailableError(_TryAgainError):
    status = 503
    type = "ServiceUnavailableError"


class DeadlineError(LatentserveError):
    status = 504
    type = "TimeoutError"
