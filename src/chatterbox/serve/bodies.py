"""What a request brings.

Owns: how a body is read, as JSON or as a form with recordings, how much of it. Does not know: what its fields mean.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import TOO_LARGE, ApiError

MIB, FORM_BYTES = 2**20, 2**16  # of a form beside its files
CHARACTER_BYTES = 12  # that one takes at most, as JSON may write it
MAX_FIELDS = 50


class BodyLimit:
    """ASGI middleware: no more of a body is read than the largest recording, or the longest text, may take."""

    def __init__(self, app: ASGIApp, *, config: ServerConfig) -> None:
        self._app, self._most = app, most_bytes(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared, read = int(Headers(scope=scope).get("content-length", 0)), 0

        async def bounded() -> Message:
            nonlocal read
            got = await receive() if declared <= self._most else {}
            read += len(got.get("body", b""))
            if max(declared, read) > self._most:
                size = f"{self._most / MIB:.3g} MiB"
                message = f"the body has more than {size}; send less at once, or raise server.max_upload_mib"
                raise ApiError(message, TOO_LARGE, code="too_large")
            return got

        await self._app(scope, bounded, send)


def most_bytes(config: ServerConfig) -> int:
    """Of a body."""
    longest = CHARACTER_BYTES * max(config.max_input, config.max_job_input)
    return max(config.max_upload_mib * MIB, longest) + FORM_BYTES


class Upload(NamedTuple):
    """A file of a form: the field that it came in, what the client calls it, what is in it."""

    field: str
    filename: str
    data: bytes


class Form(NamedTuple):
    """Fields by name, the last of each, and files."""

    fields: dict[str, str]
    files: list[Upload]

    def file(self, field: str) -> Upload | None:
        """The file that came in a field. Raises ApiError: it is empty, or a text, which is no path that is opened."""
        if self.fields.get(field):
            raise ApiError(f"{field} must be a recording", param=field, code="invalid_value")
        found = next((one for one in self.files if one.field == field), None)
        if found is not None and not found.data:
            raise ApiError(f"{field} is empty; send the recording of a voice", param=field, code="invalid_audio")
        return found


async def json_of(request: Request) -> Any:
    """The body of JSON. Raises ApiError: it is none."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError("the body is no JSON; send an object with input and voice", code="invalid_json") from None


async def form_of(request: Request, config: ServerConfig, *, max_files: int = 1) -> Form:
    """The body of a form; a file that a browser names only because there is a place for one is left out.

    Raises:
        ApiError: a file is larger than the configuration allows.
        HTTPException: it is no form, or has too many fields or files.
    """
    most, fields, files = config.max_upload_mib * MIB, dict[str, str](), list[Upload]()
    async with request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=most_bytes(config)) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[name] = value
                continue
            data = await value.read(most + 1)
            if len(data) > most:
                message = f"the recording has more than {config.max_upload_mib} MiB; 10 seconds of speech are enough"
                raise ApiError(message, TOO_LARGE, param=name, code="file_too_large")
            if value.filename or data:
                files.append(Upload(name, value.filename or "", data))
    return Form(fields, files)
