"""Bodies of requests for speech: OpenAI's fields, this model's, and those of clients that send others."""

from __future__ import annotations

from typing import Any

import pytest

from chatterbox.serve.config import ServerConfig, keys_of
from chatterbox.serve.errors import ApiError
from chatterbox.serve.fields import SpeechCall, speech_call

CONFIG = ServerConfig()


def call(**fields: Any) -> SpeechCall:
    return speech_call({"input": "Hello.", "model": "tts-1", "voice": "alloy", **fields}, CONFIG)


def test_openais_fields_and_their_defaults() -> None:
    assert call() == SpeechCall("Hello.", "tts-1", "alloy", options={"speed": 1.0})
    asked = call(response_format="pcm", stream_format="sse", speed=1.5, voice={"id": "voice_1"})
    assert (asked.format, asked.is_sse, asked.voice, asked.options["speed"]) == ("pcm", True, "voice_1", 1.5)
    assert asked.is_whole and not call().is_whole and call(loudness=-16).is_whole
    assert call(stream=False).is_whole and not call(stream=True).is_whole and not call(stream=None).is_whole
    with pytest.raises(ApiError, match="stream must be") as caught:
        call(stream="no")
    assert caught.value.param == "stream"


def test_fields_of_this_model() -> None:
    asked = call(exaggeration=0.7, cfg_weight=0.3, temperature=0.6, seed=5, language_id="fr", cache_policy="sliding")
    assert asked.options == {"exaggeration": 0.7, "seed": 5, "speed": 1.0}
    assert asked.sampling == {"cfg_weight": 0.3, "temperature": 0.6}
    assert (asked.language, asked.kvcache) == ("fr", "sliding")
    assert call(extra_params={"exaggeration": 0.2, "voice": "x"}).options["exaggeration"] == 0.2
    assert call(extra_params={"voice": "x"}).voice == "alloy"
    assert call(seed=None).options == {"speed": 1.0}


def test_what_is_not_done_as_asked_is_told() -> None:
    assert call(instructions="Whisper.").warnings == ("instructions have no effect: this model cannot follow them",)
    fast = call(speed=4)
    assert fast.options["speed"] == 2.0
    assert fast.warnings == ("speed 4 was taken as 2, the nearest that can be spoken",)


def test_unknown_fields_are_ignored_unless_told() -> None:
    """LibreChat sends `backend`, and no client should break on it."""
    assert call(backend="x") == call()
    with pytest.raises(ApiError, match="there is no field 'backend'") as caught:
        speech_call({"input": "Hi.", "backend": "x"}, ServerConfig(strict=True))
    assert (caught.value.param, caught.value.status) == ("backend", 400)


def test_how_other_servers_cut_a_text_is_known_and_unused() -> None:
    fields = {"streaming_strategy": "word", "streaming_chunk_size": 200, "split_text": True, "chunk_size": 120}
    assert speech_call({"input": "Hi.", **fields}, ServerConfig(strict=True)).options == {"speed": 1.0}


def test_a_route_has_a_usual_format_of_its_own() -> None:
    assert speech_call({"input": "Hi."}, CONFIG, usual_format="wav").format == "wav"
    for named in ({"response_format": "flac"}, {"extra_params": {"response_format": "flac"}}):
        assert speech_call({"input": "Hi.", **named}, CONFIG, usual_format="wav").format == "flac"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ([], None, "the body must be a JSON object"),
        ({}, "input", "input must be a text to speak, got None"),
        ({"input": "  "}, "input", "input must be a text to speak, got ' '"),
        ({"input": 5}, "input", "input must be a text to speak, got 5"),
        ({"input": "x" * 50_001}, "input", "input has 50001 characters, more than 50000; send it in parts"),
        ({"input": "Hi.", "voice": 5}, "voice", "voice must be a name, got 5"),
        ({"input": "Hi.", "voice": {"name": "x"}}, None, None),
        ({"input": "Hi.", "model": ["x"]}, "model", r"model must be a name, got \['x'\]"),
        ({"input": "Hi.", "response_format": "ogg"}, "response_format", "response_format must be one of mp3, opus"),
        ({"input": "Hi.", "stream_format": 1}, "stream_format", "stream_format must be one of audio, sse, got 1"),
    ],
)
def test_what_is_wrong_is_named(body: Any, param: str | None, message: str | None) -> None:
    if message is None:
        assert speech_call(body, CONFIG).voice is None
        return
    with pytest.raises(ApiError, match=message) as caught:
        speech_call(body, CONFIG)
    assert caught.value.param == param
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_another_address_needs_a_key(tmp_path: Any) -> None:
    assert keys_of(ServerConfig(), None) == () == keys_of(ServerConfig(host="localhost"), "")
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ValueError, match=f"others can call {host}, so a key is needed"):
            keys_of(ServerConfig(host=host), None)
        assert keys_of(ServerConfig(host=host, no_keys=True), None) == ()
        assert keys_of(ServerConfig(host=host), "one, two") == ("one", "two")
    file = tmp_path / "keys"
    file.write_text("# ours\nthree\n\n  four \n")
    assert keys_of(ServerConfig(key_file=str(file)), "one") == ("one", "three", "four")
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="has no key; write one a line"):
        keys_of(ServerConfig(key_file=str(file)), "one")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"key_file .* cannot be read: (Is a directory|No such file or directory)"):
            keys_of(ServerConfig(key_file=str(path)), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70_000}, "port must be a whole number from 0 to 65535, got 70000"),
        ({"models": "turbo"}, "models must be a list of names, got 'turbo'"),
        ({"max_streams": 0}, "max_streams must be"),
        ({"host": ""}, "host must be a name"),
        ({"strict": 1}, "strict must be true or false"),
    ],
)
def test_wrong_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerConfig(**values)
