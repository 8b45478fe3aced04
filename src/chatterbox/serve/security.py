"""Who may call: keys, the names that the server is called by, pages of other origins.

Owns: the comparison of keys, which paths are open. Does not know: what a path does.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox.serve.errors import UNAUTHORIZED, ApiError

# With /v1 before them and without.
HEALTH_PATHS = ("/health", "/ready", "/ping")
LIST_PATHS = ("", "/models", "/audio/models", "/audio/voices", "/voices", "/voices/all-names", "/languages")


class Keys:
    """ASGI middleware: without one of the keys only the open paths answer, and those to questions alone."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], open_lists: bool, answer: Any) -> None:
        """``answer``: makes a response of an `ApiError`."""
        self._app, self._answer = app, answer
        self._keys = [key.encode() for key in keys]
        self._open = (*HEALTH_PATHS, *LIST_PATHS) if open_lists else HEALTH_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._keys or self._is_open(scope):
            return await self._app(scope, receive, send)
        if self._has_key(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401, "reason": "a key is needed"})
            return
        error = ApiError("a key is needed: Authorization: Bearer KEY", UNAUTHORIZED, code="invalid_api_key")
        await self._answer(error)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["path"] == "/" or scope["path"].startswith("/page/"):  # it asks for the key itself
            return bool(scope["type"] == "http")
        is_question = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        return is_question and scope["path"].rstrip("/").removeprefix("/v1") in self._open

    def _has_key(self, headers: Headers) -> bool:
        given = headers.get("x-api-key", "") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        encoded = given.encode("utf-8", "surrogateescape")
        return sum(hmac.compare_digest(encoded, key) for key in self._keys) > 0  # all of them, whichever fits
