"""What programs that speak through OpenAI send, as they send it, and what they make of the answer.

Recorded requests: `make test-clients` runs some of the programs' own code.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from chatterbox.serve import speech
from chatterbox.serve.config import ServerConfig
from tests.integration.test_serve import TEXT, Running, decoded, served
from tests.support.waiting import wait_for

KEY = "secret"
KEYED = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
HELLO = "Hello there."


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    one = Running(served(), ServerConfig(), (KEY,))
    yield one
    one.close()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"input": HELLO, "voice": "alloy", "model": "tts-1"}, id="Open WebUI"),
        pytest.param({"input": HELLO, "model": "gpt-4o-mini-tts", "voice": "shimmer"}, id="AnythingLLM"),
        pytest.param({"input": HELLO, "model": "tts-1", "voice": "nova", "backend": "openai"}, id="LibreChat"),
        pytest.param(
            {"model": "tts-1", "input": HELLO, "voice": "built-in", "response_format": "mp3", "speed": 1},
            id="SillyTavern",
        ),
        pytest.param(
            {"model": "tts-1-hd", "input": HELLO, "voice": "onyx", "response_format": "mp3", "speed": 1.0}, id="n8n"
        ),
        pytest.param(
            {
                "model": "tts-1", "input": HELLO, "voice": "sage", "response_format": "mp3", "speed": 1.0,
                "exaggeration": 0.7, "cfg_weight": 0.3, "temperature": 0.6,
            },
            id="Home Assistant, openai_tts",
        ),
    ],
)  # fmt: skip
def test_whoever_takes_what_comes_gets_mp3(running: Running, fields: dict[str, Any]) -> None:
    status, headers, data = running.ask("POST", "/v1/audio/speech", fields, **KEYED)
    assert (status, headers["content-type"]) == (200, "audio/mpeg") and 0.3 < decoded(data) < 5
    assert "x-chatterbox-warning" not in headers


def test_open_webui_lists_without_its_key(running: Running) -> None:
    """It sends none there, and reads ``id`` and ``name``; where that fails it shows OpenAI's voices."""
    for path, name in (("/v1/audio/models", "models"), ("/v1/audio/voices", "voices"), ("/v1/models", "data")):
        status, _, data = running.ask("GET", path)
        assert status == 200 and all(one["id"] for one in json.loads(data)[name])
    assert [one["name"] for one in json.loads(running.ask("GET", "/v1/audio/voices")[2])["voices"]] == ["built-in"]
    assert running.ask("POST", "/v1/audio/speech", {"input": HELLO, "voice": "alloy"})[0] == 401


def test_librechats_pieces_are_one_body(running: Running) -> None:
    """It cuts a long text, asks for each piece, and plays the bodies one behind the other as they are."""
    bodies = [
        running.ask("POST", "/v1/audio/speech", {"input": piece, "model": "tts-1", "voice": "alloy"}, **KEYED)[2]
        for piece in ("One.", HELLO, "Good night.")
    ]
    assert decoded(b"".join(bodies)) == pytest.approx(sum(map(decoded, bodies)), abs=0.1)


def test_pipecat_plays_pcm_as_it_comes(running: Running) -> None:
    """A request a sentence, of 16-bit samples at 24 kHz."""
    arguments: dict[str, Any] = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": TEXT, "response_format": "pcm"}
    with running.client(KEY).audio.speech.with_streaming_response.create(**arguments) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "audio/pcm"
        parts = list(answer.iter_bytes(1024))
    assert len(parts) > 3 and sum(map(len, parts)) % 2 == 0


LIVEKIT = {
    "input": TEXT, "model": "gpt-4o-mini-tts", "voice": "ash", "response_format": "mp3", "speed": 1.0,
    "stream_format": "sse",
}  # fmt: skip


class LiveKit:
    """A request under way, read line by line as LiveKit reads it."""

    def __init__(self, running: Running) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=5)  # as long as it waits
        self._connection.request("POST", "/v1/audio/speech", json.dumps(LIVEKIT), KEYED)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200 and self._answer.headers["x-request-id"]

    def line(self) -> str:
        return self._answer.readline().decode().rstrip("\n")

    def audio(self) -> bytes:
        """All that follows: of lines that begin with ``data: ``, what they hold under ``audio``."""
        data = b""
        for line in self._answer.read().decode().split("\n"):
            if line.startswith("data: "):
                data += base64.b64decode(json.loads(line[6:]).get("audio", ""))
        return data

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


@pytest.fixture
def stalled(running: Running, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Speech begins when it is set, as it does for one who waits for rows."""
    stream, may_begin = running.model.synthesizer.stream, threading.Event()

    def late(*arguments: Any, **options: Any) -> Iterator[Any]:
        assert may_begin.wait(30)
        yield from stream(*arguments, **options)

    monkeypatch.setattr(running.model.synthesizer, "stream", late)
    monkeypatch.setattr(speech, "KEEP_ALIVE_SECONDS", 0.05)
    return may_begin


def test_livekit_is_kept_waiting_and_hears_all_of_it(running: Running, stalled: threading.Event) -> None:
    """It warms its connection at ``/v1/``, and gives up after 5 seconds without a line."""
    assert running.ask("GET", "/v1/")[0] == 200
    client = LiveKit(running)
    assert json.loads(client.line()[6:])["type"] == "speech.audio.info"
    assert [client.line() for _ in range(5)] == ["", ": keep-alive", "", ": keep-alive", ""]
    stalled.set()
    assert decoded(client.audio()) > 1
    client.close()


def test_livekit_leaves_while_it_waits(running: Running, stalled: threading.Event) -> None:
    client = LiveKit(running)
    assert client.line().startswith("data: ") and running.app.speaking.num_streams == 1
    client.close()
    wait_for(lambda: running.app.speaking.num_streams == 0)
    stalled.set()
    wait_for(lambda: running.rows == 0)
