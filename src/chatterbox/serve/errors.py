"""What goes wrong, as OpenAI's clients read it: {"error": {message, type, param, code}} and a status.

Owns: the shape, which status an exception of the package means. Does not know: routes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from chatterbox.audio.encoding import EncodingError
from chatterbox.engine.scheduler import EngineClosedError, QueueFullError
from chatterbox.voice.library import VoiceError

RETRY_SECONDS = 1
BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, TOO_LARGE, BUSY = 400, 401, 403, 404, 409, 413, 429
LEFT, FAULT, CLOSED = 499, 500, 503  # the first: nobody reads it but the log
_TYPES = {
    UNAUTHORIZED: "authentication_error",
    FORBIDDEN: "permission_error",
    BUSY: "rate_limit_error",
    FAULT: "server_error",
    CLOSED: "server_error",
}


class ApiError(Exception):
    """One that the client is told of. ``message``: one line, with the remedy."""

    def __init__(
        self,
        message: str,
        status: int = BAD_REQUEST,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


# What routes raise for what was asked. Starlette logs a traceback for errors that it does not know.
REFUSALS = (QueueFullError, EngineClosedError, VoiceError, EncodingError)


def api_error(error: BaseException, known: Container[str] = ()) -> ApiError:
    """``error`` as a client is told it. ``known``: fields of the request; a message that begins with one is about it.

    What nobody has foreseen is a fault of the server, whose message stays in its log.
    """
    if isinstance(error, ApiError):
        return error
    message = str(error).strip().partition("\n")[0]
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(RETRY_SECONDS)}
        return ApiError("the queue is full; try again in a moment", BUSY, code="queue_full", headers=headers)
    if isinstance(error, EngineClosedError):
        return ApiError("the server is shutting down", CLOSED, code="shutting_down")
    if isinstance(error, VoiceError):
        return ApiError(message, NOT_FOUND, param="voice", code="voice_not_found")
    if isinstance(error, EncodingError):
        return ApiError(message, param="response_format", code="unsupported_format")
    if isinstance(error, ValueError | TypeError):
        first = message.partition(" ")[0]
        return ApiError(message, param=first if first in known else None, code="invalid_value")
    return ApiError("the server failed at this request; its log says at what", FAULT, code="server_fault")
