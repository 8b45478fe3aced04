"""What a request brings.

Owns: how a body is read, as JSON or as a form with recordings. Does not know: what its fields mean.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.requests import Request

from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import TOO_LARGE, ApiError

MIB, FORM_BYTES = 2**20, 2**16  # of a form beside its files
MAX_FIELDS = 50


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
        """The file that came in a field. Raises ApiError: a text did, which is no path that is opened here."""
        if self.fields.get(field):
            raise ApiError(f"{field} must be a recording", param=field, code="invalid_value")
        return next((one for one in self.files if one.field == field), None)


async def json_of(request: Request) -> Any:
    """The body of JSON. Raises ApiError: it is none."""
    try:
        return json.loads(await request.body())
    except ValueError:
        raise ApiError("the body is no JSON; send an object with input and voice", code="invalid_json") from None


async def form_of(request: Request, config: ServerConfig, *, max_files: int = 1) -> Form:
    """The body of a form; a file that a browser names only because there is a place for one is left out.

    Raises:
        ApiError: a file is larger than the configuration allows.
        HTTPException: it is no form, or has too many fields or files.
    """
    most = config.max_upload_mib * MIB
    if int(request.headers.get("content-length", 0)) > most + FORM_BYTES:
        raise _too_large(config)
    fields, files = dict[str, str](), list[Upload]()
    async with request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=FORM_BYTES) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[name] = value
                continue
            data = await value.read(most + 1)
            if len(data) > most:
                raise _too_large(config)
            if value.filename or data:
                files.append(Upload(name, value.filename or "", data))
    return Form(fields, files)


def _too_large(config: ServerConfig) -> ApiError:
    message = f"the recording has more than {config.max_upload_mib} MiB; 10 seconds of speech are enough"
    return ApiError(message, TOO_LARGE, param="audio_sample", code="file_too_large")
