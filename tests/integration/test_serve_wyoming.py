"""Wyoming with its own client, as Home Assistant uses it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from wyoming.audio import AudioChunk
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from chatterbox.serve.config import ServerConfig
from chatterbox.serve.wyoming import MAX_WAITING
from tests.integration.test_serve import TEXT, Running, served
from tests.support.waiting import wait_for

LONG = " ".join([TEXT] * 5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Wyoming(Running):
    def __init__(self, folder: Path) -> None:
        self.wyoming_port = free_port()
        super().__init__(served(), ServerConfig(voices=str(folder), wyoming_port=self.wyoming_port))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wyoming]:
    one = Wyoming(tmp_path_factory.mktemp("voices"))
    yield one
    one.close()


async def until(client: AsyncTcpClient, kind: str) -> list[Event]:
    events = []
    while not events or events[-1].type != kind:
        event = await asyncio.wait_for(client.read_event(), 60)
        assert event is not None
        events.append(event)
    return events


def samples(events: list[Event]) -> np.ndarray:
    chunks = [AudioChunk.from_event(one) for one in events if AudioChunk.is_type(one.type)]
    assert {(one.rate, one.width, one.channels) for one in chunks} == {(24_000, 2, 1)}
    return np.frombuffer(b"".join(one.audio for one in chunks), "<i2")


def test_what_there_is(running: Wyoming) -> None:
    """Home Assistant lists voices that are installed and have a language."""

    async def ask() -> Info:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            await client.write_event(Describe().event())
            return Info.from_event((await until(client, "info"))[-1])

    [program] = asyncio.run(ask()).tts
    assert program.supports_synthesize_streaming and program.installed
    assert [(voice.name, voice.languages, voice.installed) for voice in program.voices] == [("built-in", ["en"], True)]


def test_a_text_is_spoken(running: Wyoming) -> None:
    async def ask() -> list[Event]:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            await client.write_event(Synthesize(TEXT, SynthesizeVoice(name="built-in", language="en-US")).event())
            return await until(client, "audio-stop")

    events = asyncio.run(ask())
    assert events[0].type == "audio-start" and len(events) > 3 and len(samples(events)) > 24_000


def test_text_that_arrives_is_spoken_once(running: Wyoming) -> None:
    """As Home Assistant sends it: pieces, the whole once more, the end; then another text on the same connection."""

    async def ask() -> tuple[list[Event], list[Event]]:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            await client.write_event(SynthesizeStart().event())
            for i in range(0, len(LONG), 7):
                await client.write_event(SynthesizeChunk(LONG[i : i + 7]).event())
            first = await until(client, "audio-chunk")  # before the text is over
            await client.write_event(Synthesize(LONG).event())
            await client.write_event(SynthesizeStop().event())
            stream = [*first, *await until(client, "synthesize-stopped")]
            await client.write_event(Synthesize("Hi.").event())
            return stream, await until(client, "audio-stop")

    stream, after = asyncio.run(ask())
    kinds = [one.type for one in stream if one.type != "audio-chunk"]
    assert kinds == ["audio-start", "audio-stop", "synthesize-stopped"]
    once = len(running.speak(input=LONG, response_format="pcm")[2]) / 2
    assert 0.6 * once < len(samples(stream)) < 1.5 * once and 2400 < len(samples(after)) < 48_000


def test_whoever_leaves_gives_the_rows_back(running: Wyoming) -> None:
    async def ask() -> None:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            await client.write_event(Synthesize(LONG).event())
            await until(client, "audio-chunk")
            assert running.rows > 0

    asyncio.run(ask())
    wait_for(lambda: running.rows == 0)


def test_so_many_texts_may_wait(running: Wyoming) -> None:
    """One connection cannot fill the server with texts; those that were taken are spoken."""

    async def ask() -> tuple[list[Event], list[Event]]:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            for _ in range(MAX_WAITING + 3):
                await client.write_event(Synthesize("Hi.").event())
            refused = await until(client, "error")
            stops = sum(one.type == "audio-stop" for one in refused)
            events = [event for _ in range(MAX_WAITING + 1 - stops) for event in await until(client, "audio-stop")]
            return refused, events

    refused, events = asyncio.run(ask())
    assert Error.from_event(refused[-1]).code == "queue_full"
    assert sum(one.type == "error" for one in events) == 1 and len(samples(events)) > MAX_WAITING * 2400


def test_whoever_lets_others_speak_is_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    server = Running(served(), ServerConfig(voices=str(tmp_path), wyoming_port=port, wyoming_host="0.0.0.0"))
    server.close()
    said = [record.getMessage() for record in caplog.records if "Wyoming" in record.getMessage()]
    assert said == [f"Wyoming at 0.0.0.0, port {port}, knows no keys: whoever reaches it may speak"]


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"no json", b'{"type": 5}', b"{}", b'{"type": "describe", "data_length": 99999999999}',
        b'{"type": "describe", "payload_length": 99999999999}', b'{"type": "describe", "data_length": 9}',
    ],
)  # fmt: skip
def test_what_is_no_event_ends_the_connection(running: Wyoming, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", running.wyoming_port)) as one:
        one.sendall(line + b"\n")
        one.shutdown(socket.SHUT_WR)
        one.settimeout(60)
        assert one.recv(100) == b""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "event",
    [
        Event("synthesize", {"text": 5}),
        Event("synthesize", {}),
        Event("synthesize", {"text": "Hi.", "voice": 5}),
        Event("synthesize", {"text": "Hi.", "voice": {"name": 5}}),
        Event("synthesize-start", {"voice": 5}),
    ],
)
def test_an_event_of_other_data_is_told(running: Wyoming, event: Event) -> None:
    async def ask() -> Error:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            await client.write_event(event)
            return Error.from_event((await until(client, "error"))[-1])

    error = asyncio.run(ask())
    assert error.code in ("invalid_event", "voice_not_found") and "\n" not in error.text


def test_what_cannot_be_spoken_is_told(running: Wyoming) -> None:
    async def ask(event: Event) -> Error:
        async with AsyncTcpClient("127.0.0.1", running.wyoming_port) as client:
            await client.write_event(Event("unknown", {}))
            await client.write_event(event)
            return Error.from_event((await until(client, "error"))[-1])

    error = asyncio.run(ask(Synthesize("Hi.", SynthesizeVoice(name="bob")).event()))
    assert error.code == "voice_not_found" and "there is no voice 'bob'" in error.text
    assert "language must be en" in asyncio.run(ask(Synthesize("Hi.", SynthesizeVoice(language="fr")).event())).text
    assert "more than 50000 characters" in asyncio.run(ask(Synthesize("x" * 50_001).event())).text
