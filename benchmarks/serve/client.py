"""HTTP as clients of speech need it: bodies that are read while they come, or left, or read with little room.

Owns: requests, chunked bodies, forms, when a body's pieces arrive. Does not know: what is asked, processes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

MOST = 2**16  # bytes of a piece
BOUNDARY = "a-boundary-that-no-recording-has"
SPEECH, LONG, VOICES = "/v1/audio/speech", "/v1/audio/speech/long", "/v1/audio/voices"


class CutError(Exception):
    """A body that ended before its end."""


@dataclass
class Reply:
    """An answer; its body is read as far as its reader wants it."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _rest: int = 0  # of the chunk that is being read, or of the body
    _is_over: bool = False

    async def read(self, most: int = MOST) -> bytes:
        """Bytes as soon as there are some, ``most`` at most; none: the end. Raises CutError."""
        if not self._rest and not self._is_over:
            await self._next_chunk()
        if self._is_over:
            return b""
        data = await self.reader.read(min(most, self._rest))
        if not data:
            raise CutError(f"{self._rest} bytes are missing")
        self._rest -= len(data)
        if not self._rest:
            await self._end_chunk()
        return data

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while data := await self.read():
            yield data

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def json(self) -> Any:
        return json.loads(await self.body())

    @property
    def _is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"

    async def _next_chunk(self) -> None:
        if not self._is_chunked:
            self._is_over = True
            return
        line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise CutError("the next chunk is missing")
        self._rest = int(line, 16)
        if not self._rest:
            self._is_over = True

    async def _end_chunk(self) -> None:
        if self._is_chunked:
            await self.reader.readline()
        else:
            self._is_over = True


@asynccontextmanager
async def asked(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    room: int | None = None,
) -> AsyncIterator[Reply]:
    """An answer; leaving the block hangs up.

    Args:
        body: bytes, or what is sent as JSON.
        room: bytes that are taken before they are read; None is as many as the system likes.

    Raises:
        OSError, CutError: there is no answer.
    """
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    host = urlsplit(url)
    reader, writer = await _connected(str(host.hostname), int(host.port or 80), room)
    try:
        own = {"host": host.netloc, "content-length": str(len(data)), "connection": "close", **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in own.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        await writer.drain()
        yield await _reply(reader, writer)
    finally:
        writer.close()


async def _connected(host: str, port: int, room: int | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    own = socket.socket()
    own.setblocking(False)
    if room is not None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    try:
        await asyncio.get_running_loop().sock_connect(own, (host, port))
        return await asyncio.open_connection(sock=own, limit=room or MOST)
    except BaseException:
        own.close()
        raise


async def _reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reply:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        raise CutError("there is no answer") from None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Reply(int(first.split()[1]), headers, reader, writer, int(headers.get("content-length", 0)))


async def ask(url: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Told:
    """An answer with all of its body."""
    async with asked(url, method, path, body, headers) as reply:
        return Told(reply.status, reply.headers, await reply.body())


@dataclass(frozen=True)
class Told:
    """An answer that is over."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Arrived:
    """Pieces of a body: when each came, in seconds from before the request was sent."""

    status: int = 0
    times: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


async def spoken(url: str, fields: Mapping[str, Any]) -> Arrived:
    """Speech, read as fast as it comes. Raises RuntimeError: the server says no."""
    arrived, started = Arrived(), time.perf_counter()
    async with asked(url, "POST", SPEECH, fields) as reply:
        arrived.status = reply.status
        async for piece in reply.pieces():
            arrived.times.append(time.perf_counter() - started)
            arrived.pieces.append(piece)
    if arrived.status != 200:
        raise RuntimeError(f"the server answered {arrived.status}: {arrived.body[:500]!r}")
    return arrived


async def metrics(url: str) -> dict[str, float]:
    """What the server tells Prometheus, by name."""
    text = (await ask(url, "GET", "/metrics")).body.decode()
    return {sample.name: sample.value for one in text_string_to_metric_families(text) for sample in one.samples}


def form(fields: Mapping[str, str], file: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """The body of a form with one file, by the field's name, and its headers."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    name, data = file
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"; filename="a.wav"\r\n\r\n'
    body = b"".join([*parts, head.encode(), data, f"\r\n--{BOUNDARY}--\r\n".encode()])
    return body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


async def add_voice(url: str, name: str, recording: bytes) -> Told:
    body, headers = form({"name": name}, ("audio_sample", recording))
    return await ask(url, "POST", VOICES, body, headers)
