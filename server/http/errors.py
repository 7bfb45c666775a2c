"""Errors that our own layer answers with; vLLM's layer maps its own (`vllm.exceptions`) to the same shape.

LatentserveError
├── BadRequestError             400  the request contradicts itself, or asks for what is not there
├── UnauthorizedError           401  the key is missing or wrong
└── ForbiddenError              403  the key may not do that
"""

import json

from starlette.responses import Response

MESSAGES_PATH = "/v1/messages"


class LatentserveError(Exception):
    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    def response(self, path: str = "") -> Response:
        """In Anthropic's shape on its endpoints, else in OpenAI's. In ASCII: it may quote what UTF-8 cannot encode."""
        error = {"type": self.type, "message": self.message}
        if path.startswith(MESSAGES_PATH):
            content = {"type": "error", "error": error}
        else:
            content = {"error": error | {"param": self.param, "code": self.status}}
        return Response(json.dumps(content), self.status, media_type="application/json")


class BadRequestError(LatentserveError):
    status = 400
    type = "BadRequestError"


class UnauthorizedError(LatentserveError):
    status = 401
    type = "AuthenticationError"


class ForbiddenError(LatentserveError):
    status = 403
    type = "PermissionDeniedError"
