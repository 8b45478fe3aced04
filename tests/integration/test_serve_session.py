"""A WebSocket that text comes in by while speech goes out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from chatterbox.config import StreamingConfig
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.fields import SpeechCall
from tests.integration.test_serve import Running, decoded, served
from tests.support.waiting import wait_for

SENTENCES = ("The tea is in the kitchen. ", "Nobody saw him again. ", "He was gone by noon.")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    one = Running(served(), ServerConfig(voices=str(tmp_path_factory.mktemp("voices")), max_input=500))
    yield one
    one.close()


def connected(running: Running, **headers: str) -> ClientConnection:
    url = f"ws://127.0.0.1:{running.port}/v1/audio/speech/stream"
    return connect(url, additional_headers=headers, open_timeout=60)


def _call(text: str) -> SpeechCall:
    return SpeechCall(text, options={"seed": 1})


def tell(socket: ClientConnection, kind: str, **values: Any) -> None:
    socket.send(json.dumps({"type": kind, **values}))


def until(socket: ClientConnection, *kinds: str) -> tuple[list[dict[str, Any]], bytes]:
    """Messages up to one of ``kinds``, and the bytes between them."""
    told, audio = [], b""
    while True:
        message = socket.recv(60)
        if isinstance(message, bytes):
            audio += message
            continue
        told.append(json.loads(message))
        if told[-1]["type"] in kinds:
            return told, audio


def test_text_in_pieces_is_spoken_while_it_comes(running: Running) -> None:
    with connected(running) as socket:
        tell(socket, "session.config", seed=1, continuity="isolated")
        for sentence in SENTENCES[:2]:
            for i in range(0, len(sentence), 7):
                tell(socket, "input.text", text=sentence[i : i + 7])
        first, audio = until(socket, "audio.sentence")
        while not audio:  # before the text is over
            message = socket.recv(60)
            audio = message if isinstance(message, bytes) else b""
        tell(socket, "input.text", text=SENTENCES[2])
        tell(socket, "input.done")
        rest, more = until(socket, "audio.done")
        tell(socket, "session.close")
        last, _ = until(socket, "session.done")
    told = first + rest
    form = {"response_format": "pcm", "sample_rate": 24_000, "channels": 1}
    assert told[0] == {"type": "audio.start", **form, "warnings": []}
    marks = [one for one in told if one["type"] == "audio.sentence"]
    assert [one["text"].strip() for one in marks] == [sentence.strip() for sentence in SENTENCES]
    assert [one["utterance"] for one in marks] == [0, 1, 2]
    starts, seconds = [one["start"] for one in marks], len(audio + more) / 48_000
    assert starts[0] == 0 < starts[1] < starts[2] < seconds and rest[-1]["usage"]["output_tokens"] > 50
    assert [one["type"] for one in last] == ["session.done"]


def test_it_says_what_the_library_says(running: Running) -> None:
    """The same pieces, seed and continuity: the same samples."""
    tts, text = running.model, "".join(SENTENCES)
    request = tts.request(_call(text), "built-in")
    with connected(running) as socket:
        for continuity in ("history", "append"):
            tell(socket, "session.config", seed=1, continuity=continuity)
            tell(socket, "input.text", text=text)
            tell(socket, "input.done")
            _, audio = until(socket, "audio.done")
            chunks = tts.synthesizer.stream(
                dataclasses.replace(request, text=iter([text])), StreamingConfig(continuity=continuity)
            )
            wav = np.concatenate([chunk.audio[0].numpy() for chunk in chunks])
            assert np.frombuffer(audio, "<i2").shape == wav.shape
            assert np.abs(np.frombuffer(audio, "<i2") / 32767 - wav).max() < 1e-4


def test_one_thing_is_said_behind_the_other_and_settings_hold(running: Running) -> None:
    with connected(running) as socket:
        tell(socket, "session.config", response_format="mp3", seed=1)
        for sentence in SENTENCES[:2]:
            tell(socket, "input.text", text=sentence)
            tell(socket, "input.done")
        bodies = [until(socket, "audio.done")[1] for _ in range(2)]
        assert all(0.5 < decoded(body) < 5 for body in bodies)
        tell(socket, "session.config", response_format="wav", seed=1)
        tell(socket, "input.text", text="Hi.")
        tell(socket, "input.done")
        assert until(socket, "audio.done")[1].startswith(b"RIFF")


def test_settings_do_not_reach_into_what_was_asked_for_before(running: Running) -> None:
    with connected(running) as socket:
        for name, voice in (("pcm", "alloy"), ("wav", "nobody")):
            tell(socket, "session.config", response_format=name, voice=voice)
            tell(socket, "input.text", text="One two.")
            tell(socket, "input.done")
        told, _ = until(socket, "audio.done")
        assert told[0]["response_format"] == "pcm"
        assert "there is no voice 'nobody'" in until(socket, "error")[0][-1]["error"]["message"]


def test_what_is_not_done_as_asked_is_told(running: Running) -> None:
    with connected(running) as socket:
        tell(socket, "session.config", model="gpt-9-tts", instructions="Whisper.")
        tell(socket, "input.text", text="Hi.")
        warnings = until(socket, "audio.start")[0][-1]["warnings"]
        assert len(warnings) == 2 and "there is no model 'gpt-9-tts'" in warnings[1]


def test_barge_in(running: Running) -> None:
    """What was not said is forgotten, the rows are free, and the next text is spoken."""
    with connected(running) as socket:
        tell(socket, "input.text", text=" ".join(SENTENCES * 4))
        until(socket, "audio.sentence")
        wait_for(lambda: running.rows > 0)
        started = time.monotonic()
        tell(socket, "input.cancel")
        told, _ = until(socket, "audio.cancelled")
        wait_for(lambda: running.rows == 0)
        assert time.monotonic() - started < 5 and told[-1] == {"type": "audio.cancelled"}
        tell(socket, "input.cancel")  # of nothing
        tell(socket, "input.text", text="Hi.")
        tell(socket, "input.done")
        told, audio = until(socket, "audio.done")
        assert [one["type"] for one in told] == ["audio.start", "audio.sentence", "audio.done"] and len(audio) > 4800


def test_whoever_leaves_gives_the_rows_back(running: Running) -> None:
    with connected(running) as socket:
        tell(socket, "input.text", text=" ".join(SENTENCES * 4))
        until(socket, "audio.sentence")
        wait_for(lambda: running.rows > 0)
    wait_for(lambda: running.rows == 0)


def test_a_text_that_pauses_holds_nobody(running: Running) -> None:
    """Its rows are parked, and another speaks meanwhile."""
    with connected(running) as socket:
        tell(socket, "input.text", text=SENTENCES[0] + "And then")
        until(socket, "audio.sentence")
        assert running.speak(input="Hi.")[0] == 200
        tell(socket, "input.text", text=" they left.")
        tell(socket, "input.done")
        told, audio = until(socket, "audio.done")
        assert len(audio) > 48_000 and told[-1]["usage"]["output_tokens"] > 20


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("{", "a message must be JSON"),
        ("[]", "a message must be a JSON object"),
        ({"type": "input.sing"}, "type must be session.config, input.text"),
        ({"type": "input.text", "text": 5}, "text must be a string"),
        ({"type": "input.text", "text": "x" * 501}, "more than 500 characters wait to be spoken"),
        ({"type": "session.config", "continuity": "none"}, "continuity must be one of isolated, history, append"),
        ({"type": "session.config", "response_format": "ogg"}, "response_format must be one of"),
        ({"type": "session.config", "speed": 2}, "speed, loudness and stream=false are of whole speech"),
    ],
)
def test_what_is_not_understood_is_told_and_the_session_goes_on(running: Running, message: Any, reason: str) -> None:
    with connected(running) as socket:
        socket.send(message if isinstance(message, str) else json.dumps(message))
        told, _ = until(socket, "error")
        assert reason in told[-1]["error"]["message"]
        tell(socket, "input.cancel")
        tell(socket, "session.close")
        assert until(socket, "session.done")[0]


def test_unknown_voices_are_told(running: Running) -> None:
    with connected(running) as socket:
        tell(socket, "session.config", voice="bob")
        tell(socket, "input.text", text="Hi.")
        assert until(socket, "error")[0][-1]["error"]["code"] == "voice_not_found"
        socket.send(b"bytes")
        until(socket, "error")
        with pytest.raises(ConnectionClosed):
            socket.recv(60)


def test_pages_of_other_origins_have_no_socket(running: Running) -> None:
    with pytest.raises(InvalidStatus):
        connected(running, origin="https://example.org")


def test_a_key_is_asked_for(running: Running, tmp_path: Path) -> None:
    keyed = Running(running.model, ServerConfig(voices=str(tmp_path)), ("secret",))
    try:
        with pytest.raises(InvalidStatus):
            connected(keyed)
        with connected(keyed, authorization="Bearer secret") as socket:
            tell(socket, "session.close")
            assert until(socket, "session.done")[0]
    finally:
        keyed.close(keeps_model=True)
