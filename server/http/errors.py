"""Errors that our own layer answers with; vLLM's layer maps its own (`vllm.exceptions`) to the same shape.

LatentserveError
├── BadRequestError             400  the request contradicts itself, or asks for what is not there
├── UnauthorizedError           401  the key is missing or wrong
└── ForbiddenError              403  the key may not do that
"""

from starlette.responses import JSONResponse

MESSAGES_PATH = "/v1/messages"


class LatentserveError(Exception):
    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    def response(self, path: str = "") -> JSONResponse:
        """In Anthropic's shape on its endpoints, else in OpenAI's."""
        if path.startswith(MESSAGES_PATH):
            return JSONResponse({"type": "error", "error": {"type": self.type, "message": self.message}}, self.status)
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.status}
        return JSONResponse({"error": error}, self.status)


class BadRequestError(LatentserveError):
    status = 400
    type = "BadRequestError"


class UnauthorizedError(LatentserveError):
    status = 401
    type = "AuthenticationError"


class ForbiddenError(LatentserveError):
    status = 403
    type = "PermissionDeniedError"
