"""Who may call: keys, the names that the server is called by, pages of other origins.

Owns: the comparison of keys, which paths are open. Does not know: what a path does.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox.serve.admission import Caller
from chatterbox.serve.errors import FORBIDDEN, UNAUTHORIZED, ApiError
from chatterbox.values import shown

# With /v1 before them and without.
HEALTH_PATHS = ("/health", "/ready", "/ping")
LISTS = (
    "", "/models", "/audio/models", "/audio/voices", "/voices", "/voices/all-names", "/languages", "/openapi.json",
    "/get_reference_files", "/get_predefined_voices", "/api/model-info",
)  # fmt: skip


class Keys:
    """ASGI middleware: without one of the keys only the open paths answer, and those to questions alone."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], open_lists: bool, answer: Any) -> None:
        """``answer``: makes a response of an `ApiError`."""
        self._app, self._answer = app, answer
        self._keys = [key.encode() for key in keys]
        self._open_lists = open_lists

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._keys or self._is_open(scope):
            return await self._app(scope, receive, send)
        caller = self._caller(Headers(scope=scope))
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401, "reason": "a key is needed"})
            return
        sent = not {"x-api-key", "authorization"}.isdisjoint(Headers(scope=scope))
        message = "the key is none of the server's" if sent else "a key is needed: Authorization: Bearer KEY"
        error = ApiError(message, UNAUTHORIZED, code="invalid_api_key")
        await self._answer(error)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["path"] == "/" or scope["path"].startswith("/page/"):  # it asks for the key itself
            return bool(scope["type"] == "http")
        return _is_question(scope) and is_open(scope["path"], lists=self._open_lists)

    def _caller(self, headers: Headers) -> int | None:
        """Whose key came, by number; None: nobody's."""
        scheme, _, rest = headers.get("authorization", "").strip().partition(" ")
        given = headers.get("x-api-key", "") or (rest.strip() if scheme.lower() == "bearer" else scheme)
        encoded = given.encode("utf-8", "surrogateescape")
        fits = [hmac.compare_digest(encoded, key) for key in self._keys]  # all of them, whichever fits
        return fits.index(True) if any(fits) else None


def _is_question(scope: Scope) -> bool:
    """Whether it changes nothing, and makes nothing."""
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")


def is_open(path: str, *, lists: bool = True) -> bool:
    """Whether who asks at ``path`` needs no key; ``lists``: lists need none either."""
    own = path.rstrip("/").removeprefix("/v1")
    return own in HEALTH_PATHS or (lists and own in LISTS)


class Origins:
    """ASGI middleware: a browser's page of another origin than the server's own, or a named one, changes nothing here.

    A form needs no permission of the server to be sent, and neither does a socket.
    """

    def __init__(self, app: ASGIApp, *, origins: Sequence[str], answer: Any) -> None:
        self._app, self._origins, self._answer = app, {*origins}, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._may(scope):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403, "reason": "pages of this origin may not call"})
            return
        origin = Headers(scope=scope)["origin"]
        message = f"pages of {shown(origin)} may not call; server.origins names those that may"
        await self._answer(ApiError(message, FORBIDDEN, code="origin_not_allowed"))(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or not self._origins.isdisjoint((origin, "*")):
            return True
        return _is_question(scope) or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


class Client(NamedTuple):
    """Who asks: whose key came, by number, None where there are no keys; and what else the request says of itself."""

    caller: Caller = None
    headers: Mapping[str, str] = MappingProxyType({})


def client_of(connection: HTTPConnection) -> Client:
    """Of a request, or of a socket."""
    return Client(getattr(connection.state, "caller", None), connection.headers)
