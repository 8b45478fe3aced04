"""What a request brings: how much of it is read, and what is no JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from chatterbox.serve.bodies import BodyLimit, Form, Upload, json_of, most_bytes
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError

CONFIG = ServerConfig(max_upload_mib=1, max_input=1000, max_job_input=1000)


def asked(parts: list[bytes], **headers: str) -> tuple[Any, int]:
    """What is read of a body that comes in parts, and how many of them were asked for."""
    num_read, left = 0, iter(parts)

    async def receive() -> dict[str, Any]:
        nonlocal num_read
        num_read += 1
        part = next(left, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal body
        try:
            body = await json_of(Request(scope, receive))
        except ApiError as error:
            body = error

    body: Any = None
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(BodyLimit(app, config=CONFIG)({"type": "http", "headers": given}, receive, None))  # type: ignore[arg-type]
    return body, num_read


@pytest.mark.parametrize(("headers", "most_read"), [({"content_length": str(2**21)}, 0), ({}, 3)])
def test_no_more_is_read_than_is_allowed(headers: dict[str, str], most_read: int) -> None:
    """Whether its length is told before, or never."""
    told, num_read = asked([bytes(2**19)] * 1000, **headers)
    assert (told.status, told.code, num_read) == (413, "too_large", most_read)
    assert str(told) == "the body has more than 1.06 MiB; send less at once, or raise server.max_upload_mib"


def test_the_longest_text_is_within_it() -> None:
    assert asked([b'{"a": ', b"1}"])[0] == {"a": 1}
    config = ServerConfig(max_upload_mib=1)
    assert most_bytes(config) > 12 * config.max_job_input


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 500_000, b"9" * 5000, b"a=b"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    told = asked([body])[0]
    assert (told.status, told.code) == (400, "invalid_json") and "send an object" in str(told)


def test_a_text_in_the_place_of_a_file_is_no_path() -> None:
    recording = Upload("voice_file", "a.wav", b"RIFF")
    assert (
        Form({}, [recording]).file("voice_file") is recording
        and Form({"voice_file": ""}, []).file("voice_file") is None
    )
    with pytest.raises(ApiError, match="voice_file must be a recording"):
        Form({"voice_file": "/etc/passwd"}, []).file("voice_file")
