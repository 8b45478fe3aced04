"""What clients of a soak do: each action is a request or several, and tells how they ended.

Owns: the requests, what each has earned. Does not know: how many clients there are, for how long, what is made of it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.serve.client import LONG, SPEECH, VOICES, CutError, Told, add_voice, ask, asked
from benchmarks.serve.outcomes import Outcome
from benchmarks.speed.baselines import TEXTS

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
LEAVES = 1 / 3  # share of those who listen
SLOW_BYTES, SLOW_SECONDS, LITTLE_ROOM = 1200, 0.05, 8192  # half the pace of playing
SHORTEST = 4800  # bytes of PCM: a tenth of a second
MOST_INPUT = 50_000  # characters
GONE = (OSError, CutError, asyncio.IncompleteReadError)
Action = Callable[["Client"], AsyncIterator[Outcome]]


class Client:
    """One of many. ``name`` is no other's; ``recording``: a WAV that voices are made of."""

    def __init__(self, url: str, name: str, rng: random.Random, recording: bytes, voices: tuple[str, ...]) -> None:
        self.url, self.name, self.rng, self.recording, self.voices = url, name, rng, recording, voices
        self._num_voices = 0

    def fields(self, **more: Any) -> dict[str, Any]:
        """A request for speech."""
        texts = self.rng.sample(TEXTS, self.rng.randint(1, 3))
        return {"input": " ".join(texts), "voice": self.rng.choice(self.voices), **more}

    def leaves(self) -> bool:
        return self.rng.random() < LEAVES

    def new_voice(self) -> str:
        self._num_voices += 1
        return f"{self.name}-{self._num_voices}"

    async def told(
        self, kind: str, method: str, path: str, body: Any = None, earned: tuple[int, ...] = (200,)
    ) -> Outcome:
        """A request that is answered at once."""
        try:
            return Outcome(kind, (await ask(self.url, method, path, body)).status, earned)
        except GONE as error:
            return Outcome(kind, 0, earned, repr(error))


async def speech(client: Client) -> AsyncIterator[Outcome]:
    """In any format, to the end or left."""
    name = client.rng.choice(FORMATS)
    yield await _listened(client, f"speech, {name}", client.fields(response_format=name))


async def slow(client: Client) -> AsyncIterator[Outcome]:
    """PCM, read at half the pace of playing."""
    yield await _listened(client, "speech, read slowly", client.fields(response_format="pcm"), is_slow=True)


async def _listened(client: Client, kind: str, fields: Mapping[str, Any], *, is_slow: bool = False) -> Outcome:
    most = client.rng.randint(1, 60_000) if client.leaves() else None
    kind, status, num_bytes = f"{kind}, left" if most is not None else kind, 0, 0
    try:
        async with asked(client.url, "POST", SPEECH, fields, room=LITTLE_ROOM if is_slow else None) as reply:
            status = reply.status
            while data := await reply.read(SLOW_BYTES if is_slow else 2**16):
                num_bytes += len(data)
                if most is not None and num_bytes >= most:
                    return Outcome(kind, status)
                if is_slow:
                    await asyncio.sleep(SLOW_SECONDS)
    except GONE as error:
        return Outcome(kind, status, fault=repr(error))
    return Outcome(kind, status, fault="" if num_bytes >= 1000 else f"{num_bytes} bytes")


async def events(client: Client) -> AsyncIterator[Outcome]:
    """Server-sent events; the last says that all was said."""
    fields = client.fields(response_format=client.rng.choice(("mp3", "pcm")), stream_format="sse")
    leaves, last, status = client.leaves(), "", 0
    kind = "events, left" if leaves else "events"
    try:
        async with asked(client.url, "POST", SPEECH, fields) as reply:
            status, rest = reply.status, b""
            async for piece in reply.pieces():
                *lines, rest = (rest + piece).split(b"\n\n")
                for line in lines:
                    if line.startswith(b":"):  # a comment, which keeps the connection
                        continue
                    told = json.loads(line.removeprefix(b"data: "))
                    last = told["type"]
                    base64.b64decode(told.get("audio", ""))
                if leaves and last == "speech.audio.delta":
                    yield Outcome(kind, status)
                    return
    except GONE as error:
        yield Outcome(kind, status, fault=repr(error))
        return
    yield Outcome(kind, status, fault="" if last == "speech.audio.done" else f"the last event is {last!r}")


async def socket(client: Client) -> AsyncIterator[Outcome]:
    """Text in pieces over a WebSocket: said to its end, cancelled, or left."""
    way = client.rng.choice(("spoken", "cancelled", "left"))
    kind = f"socket, {way}"
    try:
        async with connect(f"{client.url.replace('http', 'ws', 1)}{SPEECH}/stream", open_timeout=120) as own:
            fault = await _session(client, own, way)
    except Exception as error:  # of the library's own kinds
        yield Outcome(kind, 0, (101,), repr(error))
        return
    yield Outcome(kind, 101, (101,), fault)


async def _session(client: Client, own: ClientConnection, way: str) -> str:
    """One text; what was wrong with what was said."""

    async def tell(type: str, **values: Any) -> None:
        await own.send(json.dumps({"type": type, **values}))

    fields, num_bytes = client.fields(response_format="pcm"), 0
    text = fields.pop("input")
    await tell("session.config", **fields)
    for start in range(0, len(text), 12):
        await tell("input.text", text=text[start : start + 12])
        await asyncio.sleep(0.01)
    await tell("input.done")
    async for message in own:
        if isinstance(message, bytes):
            num_bytes += len(message)
            if way == "left":
                return ""
            if way == "cancelled":
                await tell("input.cancel")
                way = "being cancelled"
            continue
        told = json.loads(message)
        if told["type"] == "error":
            return str(told["error"]["message"])
        if told["type"] in ("audio.done", "audio.cancelled"):
            return "" if num_bytes >= SHORTEST else f"{num_bytes} bytes"
    return "the session ended before its speech"


async def voice(client: Client) -> AsyncIterator[Outcome]:
    """The life of one: added by two at once, spoken in, removed by two while it speaks, and gone."""
    name = client.new_voice()
    for one in await _one_of_two(add_voice(client.url, name, client.recording) for _ in range(2)):
        yield Outcome("voice added, by two", *one)
    told = await add_voice(client.url, name, client.recording)
    yield Outcome("voice added again", told.status, (409,))
    fields = client.fields(voice=name, response_format="pcm")
    yield await client.told("speech in a new voice", "POST", SPEECH, fields)
    speaking = asyncio.create_task(client.told("speech while its voice goes", "POST", SPEECH, fields, (200, 404)))
    await asyncio.sleep(client.rng.uniform(0.0, 0.5))
    for one in await _one_of_two(ask(client.url, "DELETE", f"{VOICES}/{name}") for _ in range(2)):
        yield Outcome("voice removed, by two", *one)
    yield await speaking
    yield await client.told("speech in a voice that is gone", "POST", SPEECH, fields, (404,))


async def _one_of_two(requests: Iterable[Awaitable[Told]]) -> list[tuple[int, tuple[int, ...]]]:
    """Statuses of two requests at once of which one alone can be done, and what each has earned."""
    statuses = [one.status for one in await asyncio.gather(*requests)]
    refused = (404, 409) if 200 in statuses else ()
    return [(status, refused if 200 in statuses[:place] else (200, *refused)) for place, status in enumerate(statuses)]


async def job(client: Client) -> AsyncIterator[Outcome]:
    """The life of one: added, followed to its end or removed in its midst, downloaded, gone."""
    body = client.fields(response_format=client.rng.choice(FORMATS))
    told = await ask(client.url, "POST", LONG, body)
    yield Outcome("job added", told.status, (202,))
    if told.status != 202:
        return
    path = told.json["status_url"]
    if client.leaves():
        yield await client.told("job paused", "PUT", f"{path}/pause", None, (200, 409))
        yield await client.told("job resumed", "PUT", f"{path}/resume", None, (200, 409))
    else:
        followed = await ask(client.url, "GET", f"{path}/sse")
        is_over = b'"type":"completed"' in followed.body
        yield Outcome("job followed", followed.status, fault="" if is_over else "it was not completed")
        yield await client.told("job downloaded", "GET", f"{path}/download")
    yield await client.told("job removed", "DELETE", path)
    yield await client.told("job that is gone", "GET", path, None, (404,))


async def wrong(client: Client) -> AsyncIterator[Outcome]:
    """What has to be refused."""
    for kind, method, path, body, status in (
        ("no JSON", "POST", SPEECH, b"{", 400),
        ("no text", "POST", SPEECH, {"input": " "}, 400),
        ("an unknown voice", "POST", SPEECH, {"input": "Hi.", "voice": "bob"}, 404),
        ("a value out of range", "POST", SPEECH, {"input": "Hi.", "exaggeration": 99}, 400),
        ("too long a text", "POST", SPEECH, {"input": "a" * (MOST_INPUT + 1)}, 400),
        ("an unknown format", "POST", SPEECH, {"input": "Hi.", "response_format": "ogg"}, 400),
        ("an unknown path", "GET", "/v1/nothing", None, 404),
        ("an unknown job", "GET", f"{LONG}/job_none", None, 404),
        ("a wrong method", "GET", SPEECH, None, 405),
    ):
        yield await client.told(kind, method, path, body, (status,))
    told = await add_voice(client.url, client.new_voice(), b"no recording")
    yield Outcome("a voice of noise", told.status, (400,))


async def lists(client: Client) -> AsyncIterator[Outcome]:
    """What is asked beside speech."""
    for path in ("/v1/models", VOICES, "/health", "/ready", "/metrics", "/info", "/", LONG):
        yield await client.told("lists and health", "GET", path)


async def _wrong_and_lists(client: Client) -> AsyncIterator[Outcome]:
    for action in (wrong, lists):
        async for one in action(client):
            yield one
    await asyncio.sleep(1.0)


CLIENTS: tuple[tuple[Action, int], ...] = (
    (voice, 2), (job, 2), (_wrong_and_lists, 1), (slow, 5), (events, 5), (socket, 5), (speech, 12),
)  # fmt: skip
