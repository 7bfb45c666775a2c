"""Errors that our own layer answers with; vLLM's layer maps its own (`vllm.exceptions`) to the same shape.

LatentserveError
├── BadRequestError             400  the request contradicts itself, or asks for what is not there
└── ForbiddenError              403  the key may not do that
"""


class LatentserveError(Exception):
    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    def body(self) -> dict[str, object]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


class BadRequestError(LatentserveError):
    status = 400
    type = "BadRequestError"


class ForbiddenError(LatentserveError):
    status = 403
    type = "PermissionDeniedError"
