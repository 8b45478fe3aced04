"""A line in the log for each request, and the id by which a client can ask about it.

Owns: the id, what the line says. Does not know: what a request is about: no text of a user is ever in a log.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("chatterbox.serve.requests")

ID_HEADER = "x-request-id"
_IDS = re.compile(r"[A-Za-z0-9._-]{1,64}")


def write_lines() -> None:
    """Have the lines on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class RequestsLog:
    """ASGI middleware: gives each request an id, that of the client where it sent one, and logs its end as JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given, started = Headers(scope=scope).get(ID_HEADER, ""), time.perf_counter()
        name = given if _IDS.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        status, first = 0, None

        async def told(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = name
            elif first is None and message.get("body"):
                first = time.perf_counter() - started
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            line = {"request": name, "method": scope["method"], "path": scope["path"], "status": status}
            line |= {"seconds": round(time.perf_counter() - started, 3)}
            if first is not None:
                line["first_byte"] = round(first, 3)
            logger.info(json.dumps(line))
