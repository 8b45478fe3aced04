"""Clients of other servers for Chatterbox: their paths, their fields, and what they should not be able to do."""

from __future__ import annotations

import base64
import http.client
import io
import json
import uuid
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from chatterbox.audio.encoding import encoder_of, to_pcm
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.peers.devnen import MODES, speech_fields
from chatterbox.voice.library import VoiceLibrary
from tests.integration.test_serve import TEXT, Running, decoded, served
from tests.support.waiting import wait_for

HOSTILE = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..\\..\\built-in.wav",
    "file:///etc/passwd",
    "http://127.0.0.1/a.wav",
    "/dev/zero",
    "\0",
)
Told = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("voices")
    one = Running(served(VoiceLibrary(folder)), ServerConfig(voices=str(folder), max_upload_mib=1, max_input=1000))
    yield one
    one.close()


@pytest.fixture(scope="module")
def recording(running: Running) -> bytes:
    """A WAV file of another voice than the model's own."""
    rng, time = np.random.default_rng(0), np.arange(24_000 * 6) / 24_000
    tone = sum(np.sin(2 * np.pi * 180 * n * time) / n for n in range(1, 12)) * (1.2 + np.sin(2 * np.pi * 3 * time))
    encoder = encoder_of("wav", 24_000)
    return encoder.push((0.1 * tone + 0.002 * rng.standard_normal(len(time))).astype(np.float32)) + encoder.finish()


@pytest.fixture(autouse=True)
def no_voices_are_left(running: Running) -> Iterator[None]:
    yield
    for name in running.model._library.names():
        running.model._library.remove(name)


def send(running: Running, path: str, *files: tuple[str, str, bytes], method: str = "POST", **fields: str) -> Told:
    """A form; ``files``: field, file name, content."""
    boundary, body = uuid.uuid4().hex, b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for field, filename, data in files:
        about = f'Content-Disposition: form-data; name="{field}"; filename="{filename}"\r\n\r\n'
        body += f"--{boundary}\r\n{about}".encode() + data + b"\r\n"
    kind = f"multipart/form-data; boundary={boundary}"
    return running.ask(method, path, body + f"--{boundary}--\r\n".encode(), **{"content-type": kind})


def error_of(told: Told) -> tuple[int, str]:
    """Status and message, which is one line."""
    message = json.loads(told[2])["error"]["message"]
    assert message and "\n" not in message and len(message) < 400
    return told[0], message


def got(running: Running, path: str) -> Any:
    status, _, data = running.ask("GET", path)
    assert status == 200, data
    return json.loads(data)


class TestTravisvn:
    """travisvn/chatterbox-tts-api."""

    @pytest.mark.parametrize("version", ["", "/v1"])
    def test_speech_has_openais_shape_at_the_paths_of_both(self, running: Running, version: str) -> None:
        body = {"input": "Hi.", "seed": 1, "streaming_chunk_size": 200, "streaming_quality": "fast"}
        status, headers, _ = running.ask("POST", f"{version}/audio/speech", body)
        assert (status, headers["content-type"]) == (200, "audio/mpeg")
        status, headers, data = running.ask("POST", f"{version}/audio/speech/stream", body)
        assert (status, headers["content-type"], data[:4]) == (200, "audio/wav", b"RIFF") and decoded(data) > 0.2
        mp3 = running.ask("POST", f"{version}/audio/speech/stream", {**body, "response_format": "mp3"})
        assert mp3[1]["content-type"] == "audio/mpeg"

    def test_a_recording_speaks_once_and_is_not_kept(self, running: Running, recording: bytes) -> None:
        fields = {"input": TEXT, "seed": "1", "exaggeration": "0.7", "streaming_strategy": "sentence", "voice": "alloy"}
        file = ("voice_file", "mary.wav", recording)
        status, headers, heard = send(running, "/v1/audio/speech/upload", file, **fields)
        assert (status, headers["content-type"]) == (200, "audio/wav") and decoded(heard) > 1
        misses = running.model.synthesizer.voices.misses
        assert send(running, "/audio/speech/stream/upload", file, **fields)[2] == heard
        assert running.model.synthesizer.voices.misses == misses
        own = send(running, "/v1/audio/speech/upload", **fields)[2]
        assert own[:4] == b"RIFF" and own != heard
        assert got(running, "/voices/all-names")["voices"] == ["built-in"]
        events = send(running, "/audio/speech/upload", file, **{**fields, "stream_format": "sse"})[2]
        assert b"speech.audio.done" in events

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "is empty"), (b"no audio at all", "cannot be read as audio"), (bytes(2**20 + 1), "more than 1 MiB")],
    )
    def test_what_is_no_recording_is_refused(self, running: Running, content: bytes, message: str) -> None:
        status, told = error_of(send(running, "/audio/speech/upload", ("voice_file", "a.wav", content), input="Hi."))
        assert status in (400, 413) and message in told
        assert running.app.speaking.num_streams == 0

    def test_a_path_is_no_recording(self, running: Running) -> None:
        told = error_of(send(running, "/audio/speech/upload", input="Hi.", voice_file="/etc/passwd"))
        assert told == (400, "voice_file must be a recording")

    def test_forms_of_the_wrong_shape(self, running: Running, recording: bytes) -> None:
        path = "/audio/speech/upload"
        assert error_of(send(running, path))[1].startswith("input must be a text to speak")
        assert error_of(send(running, path, input="Hi.", temperature="hot"))[1].startswith("temperature must be")
        assert error_of(send(running, path, input="x" * 1001))[1].startswith("input has 1001 characters")
        assert error_of(send(running, path, **{f"f{n}": "x" for n in range(60)}))[0] == 400
        files = [("voice_file", "a.wav", recording[:1000])] * 3
        assert error_of(send(running, path, *files, input="Hi."))[0] == 400
        assert error_of(running.ask("POST", path, {"input": "Hi."}))[0] == 400
        assert error_of(running.ask("POST", path, b"xx", **{"content-type": "multipart/form-data"}))[0] == 400

    def test_voices_are_added_renamed_and_removed(self, running: Running, recording: bytes) -> None:
        file = ("voice_file", "anything.wav", recording)
        status, _, data = send(running, "/voices", file, voice_name="Aunt Mary", language="en-GB")
        told = json.loads(data)
        assert status == 201 and (told["id"], told["name"]) == ("Aunt-Mary", "Aunt Mary")
        assert error_of(send(running, "/v1/voices", file, voice_name="Aunt Mary"))[0] == 409
        assert [one["id"] for one in got(running, "/v1/voices")["voices"]] == ["built-in", "Aunt-Mary"]
        about = got(running, "/voices/Aunt-Mary")
        assert about["name"] == "Aunt Mary" and about["heard"] == "6.0 s"
        assert got(running, "/voices/built-in")["id"] == "built-in"
        status, headers, data = running.ask("GET", "/voices/Aunt-Mary/download")
        assert status == 200 and 'filename="Aunt-Mary.safetensors"' in headers["content-disposition"]
        assert data == running.model._library.path("Aunt-Mary").read_bytes()
        spoken = running.speak(voice="Aunt-Mary", response_format="pcm")[2]
        assert json.loads(send(running, "/voices/Aunt-Mary", method="PUT", new_name="mary")[2])["id"] == "mary"
        assert error_of(running.ask("GET", "/voices/Aunt-Mary"))[0] == 404
        assert running.speak(voice="mary", response_format="pcm")[2] == spoken
        assert running.ask("DELETE", "/v1/voices/mary")[0] == 200
        assert error_of(running.ask("DELETE", "/voices/mary")) == (404, "there is no voice 'mary'; there are built-in")
        for method, rest in (("DELETE", ""), ("GET", "/download")):
            assert error_of(running.ask(method, f"/voices/built-in{rest}"))[0] == 409

    def test_a_name_is_asked_for_by_json_too(self, running: Running, recording: bytes) -> None:
        send(running, "/voices", ("voice_file", "a.wav", recording), voice_name="mary")
        as_json = {"content-type": "application/json"}
        for new in (None, 5, [], "", "..", "玛丽", "built-in", "x" * 101):
            assert error_of(running.ask("PUT", "/voices/mary", {"new_name": new}, **as_json))[0] == 400
        assert error_of(running.ask("PUT", "/voices/mary", [], **as_json))[0] == 400
        assert error_of(running.ask("PUT", "/voices/mary", {"new_name": "mary"}, **as_json))[0] == 409
        assert running.ask("PUT", "/voices/mary", {"new_name": "mary2"}, **as_json)[0] == 200
        assert running.model._library.names() == ["mary2"]

    @pytest.mark.parametrize("name", ["", " ", "..", "玛丽", "built-in", "x" * 101])
    def test_names_that_no_voice_can_have(self, running: Running, recording: bytes, name: str) -> None:
        assert error_of(send(running, "/voices", ("voice_file", "a.wav", recording), voice_name=name))[0] == 400
        assert running.model._library.names() == []

    def test_what_a_path_names_stays_in_the_folder(self, running: Running, recording: bytes) -> None:
        outside = running.model._library.folder.parent / "outside.safetensors"
        outside.write_bytes(b"a secret")
        send(running, "/voices", ("voice_file", "a.wav", recording), voice_name="../../outside")
        assert running.model._library.names() == ["outside"] and outside.read_bytes() == b"a secret"
        for name in ("..%2foutside", "%2e%2e%2foutside", "..\\outside", "%00", "%ff"):
            for method, rest in (("GET", ""), ("GET", "/download"), ("DELETE", ""), ("PUT", "")):
                assert error_of(running.ask(method, f"/voices/{name}{rest}", {"new_name": "x"}))[0] in (400, 404)
        assert outside.read_bytes() == b"a secret"
        outside.unlink()

    def test_a_language_that_the_model_does_not_speak(self, running: Running, recording: bytes) -> None:
        file = ("voice_file", "a.wav", recording)
        status, message = error_of(send(running, "/voices", file, voice_name="marie", language="fr"))
        assert status == 400 and message.startswith("language must be en")

    def test_the_servers_state(self, running: Running) -> None:
        running.speak(input="Hi.")
        assert got(running, "/ping") == {"status": "ok"} == got(running, "/v1/ping")
        health = got(running, "/v1/health")
        assert (health["status"], health["model_loaded"], health["device"]) == ("healthy", True, "cpu")
        assert got(running, "/languages")["languages"] == [{"code": "en", "name": "English"}]
        assert got(running, "/voices/default") == {"default_voice": "built-in"}
        status = got(running, "/status")
        assert status["status"] == "idle" and status["models"][0]["steps"] > 0
        held = got(running, "/memory")["models"][0]
        assert (held["name"], held["device"]) == ("tiny", "cpu") and held["prefixes"]["bytes"] > 0

    def test_lists_need_no_key_and_all_else_does(self, running: Running) -> None:
        keyed = Running(running.model, running.config, ("secret",))
        try:
            for path in ("/voices", "/v1/voices/all-names", "/languages", "/ping", "/v1/health", "/models"):
                assert keyed.ask("GET", path)[0] == 200
            for path in ("/status", "/memory", "/voices/built-in", "/voices/built-in/download", "/v1/v1", "/info"):
                assert keyed.ask("GET", path)[0] == 401
            for path in ("/voices", "/audio/speech", "/audio/speech/upload", "/v1/audio/speech/stream", "/tts"):
                assert keyed.ask("POST", path, {"input": "Hi."})[0] == 401
        finally:
            keyed.close(keeps_model=True)


class TestDevnen:
    """devnen/Chatterbox-TTS-Server."""

    def test_speech(self, running: Running) -> None:
        body = {
            "text": TEXT, "voice_mode": "predefined", "predefined_voice_id": "built-in.wav", "split_text": True,
            "chunk_size": 120, "temperature": 0.5, "exaggeration": 0.5, "cfg_weight": 0.0, "seed": 1, "language": "en",
        }  # fmt: skip
        status, headers, data = running.ask("POST", "/tts", body)
        assert (status, headers["content-type"]) == (200, "audio/wav") and decoded(data) > 1
        assert headers["content-disposition"] == 'attachment; filename="speech.wav"'
        assert data[44:] == running.speak(response_format="pcm")[2]
        status, headers, data = running.ask("POST", "/tts", {"text": "Hi.", "output_format": "opus", "stream": True})
        assert headers["content-type"] == "audio/ogg" and headers["content-disposition"].endswith('.opus"')

    @pytest.mark.parametrize("seed", [0, -1, "0"])
    def test_seed_zero_is_another_way_each_time(self, running: Running, seed: Any) -> None:
        asked = [speech_fields({"text": "Hi.", "seed": seed})["seed"] for _ in range(2)]
        assert asked in ([None, None], [-1, -1])
        first, second = (running.ask("POST", "/tts", {"text": TEXT, "seed": seed})[2] for _ in range(2))
        assert first != second

    def test_the_other_servers_field_at_the_same_path(self, running: Running) -> None:
        for path in ("/tts", "/v1/tts"):
            status, headers, _ = running.ask("POST", path, {"input": "Hi.", "voice": "alloy"})
            assert (status, headers["content-type"]) == (200, "audio/wav")

    def test_recordings_become_voices_by_their_files_names(self, running: Running, recording: bytes) -> None:
        files = [("files", "Aunt Mary.wav", recording), ("files", "noise.mp3", b"no audio")]
        status, _, data = send(running, "/upload_reference", *files)
        told = json.loads(data)
        assert (status, told["uploaded_files"]) == (200, ["Aunt-Mary"])
        assert told["all_reference_files"] == ["built-in", "Aunt-Mary"] == got(running, "/get_reference_files")
        assert told["errors"][0]["filename"] == "noise.mp3" and "cannot be read" in told["errors"][0]["error"]
        assert error_of(send(running, "/upload_predefined_voice", files[0]))[0] == 409
        assert {"display_name": "Aunt-Mary", "filename": "Aunt-Mary"} in got(running, "/get_predefined_voices")
        spoken = running.speak(voice="Aunt-Mary", response_format="pcm")[2]
        for name in ("Aunt-Mary", "Aunt-Mary.wav", "Aunt Mary.wav"):
            body = {"text": TEXT, "voice_mode": "clone", "reference_audio_filename": name, "seed": 1}
            assert running.ask("POST", "/tts", body)[2][44:] == spoken
        assert running.speak(voice="Aunt Mary.wav", response_format="pcm")[2] == spoken

    @pytest.mark.parametrize("name", HOSTILE)
    @pytest.mark.parametrize(("mode", "field"), list(MODES.items()))
    def test_names_are_no_paths(self, running: Running, mode: str, field: str, name: str) -> None:
        for given in (name, f"{name}.wav"):
            status, message = error_of(running.ask("POST", "/tts", {"text": "Hi.", "voice_mode": mode, field: given}))
            assert status == 404 and message.startswith("there is no voice")
        assert error_of(running.speak(voice=name))[0] == 404

    @pytest.mark.parametrize("name", HOSTILE)
    def test_uploads_stay_in_the_folder(self, running: Running, recording: bytes, name: str) -> None:
        library = running.model._library
        before = sorted(path for path in library.folder.parent.rglob("*") if library.folder not in path.parents)
        told = send(running, "/upload_reference", ("files", f"{name}.wav", recording))
        assert told[0] == 200 or error_of(told)[0] == 400
        after = sorted(path for path in library.folder.parent.rglob("*") if library.folder not in path.parents)
        assert after == before and not {"/", "\\", "."} & set("".join(library.names()))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"text": None}, "input must be a text to speak, got None"),
            ({"text": 5}, "input must be a text to speak, got 5"),
            ({"text": "Hi.", "voice_mode": "x"}, "voice_mode must be predefined or clone, got 'x'"),
            ({"text": "Hi.", "voice_mode": ["clone"]}, "voice_mode must be predefined or clone"),
            ({"text": "Hi.", "voice_mode": "clone"}, "reference_audio_filename must be the name of a voice"),
            ({"text": "Hi.", "predefined_voice_id": 5}, "voice must be a name, got 5"),
            ({"text": "Hi.", "output_format": "ogg"}, "response_format must be one of mp3"),
            ({"text": "Hi.", "output_format": ["wav"]}, "response_format must be one of mp3"),
            ({"text": "Hi.", "seed": [1]}, "seed must be"),
            ({"text": "Hi.", "seed": True}, "seed must be"),
            ({"text": "Hi.", "speed_factor": "fast"}, "speed must be"),
            ({"text": "Hi.", "temperature": {}}, "temperature must be"),
            ({}, "input must be a text"),
        ],
    )
    def test_what_is_wrong_is_named(self, running: Running, fields: dict[str, Any], message: str) -> None:
        status, told = error_of(running.ask("POST", "/tts", fields))
        assert status == 400 and told.startswith(message)

    def test_bodies_of_the_wrong_shape(self, running: Running) -> None:
        for body in (b"", b"[]", b"5", b'"text"', b"{"):
            assert error_of(running.ask("POST", "/tts", body))[0] == 400
        assert error_of(send(running, "/upload_reference"))[1] == "files must be recordings"
        assert error_of(send(running, "/upload_reference", files="/etc/passwd"))[1] == "files must be recordings"
        assert error_of(send(running, "/upload_reference", *[("files", "a.wav", b"x")] * 21))[0] == 400
        large = ("files", "a.wav", bytes(2**20 + 1))
        assert error_of(send(running, "/upload_predefined_voice", large))[0] == 413

    def test_its_model(self, running: Running) -> None:
        about = got(running, "/api/model-info")
        assert (about["model"], about["sample_rate"], about["languages"]) == ("tiny", 24_000, ["en"])


class TestBatch:
    """vLLM-Omni's."""

    path = "/v1/audio/speech/batch"

    def ask(self, running: Running, *items: Any, **shared: Any) -> Any:
        status, _, data = running.ask("POST", self.path, {**shared, "items": list(items)})
        assert status == 200, data
        return json.loads(data)

    def test_items_have_shared_fields_and_their_own(self, running: Running) -> None:
        items = [{"input": TEXT}, {"input": "Hi.", "response_format": "mp3"}, {"input": TEXT, "seed": 2, "speed": 4}]
        told = self.ask(running, *items, voice="alloy", response_format="wav", seed=1)
        assert (told["total"], told["succeeded"], told["failed"]) == (3, 3, 0)
        results = told["results"]
        assert [(one["index"], one["status"], one["media_type"]) for one in results] == [
            (0, "success", "audio/wav"), (1, "success", "audio/mpeg"), (2, "success", "audio/wav"),
        ]  # fmt: skip
        first, second, third = (base64.b64decode(one["audio_data"]) for one in results)
        with wave.open(io.BytesIO(first)) as file:
            assert file.getnframes() == (len(first) - 44) // 2
        request = running.model.request(SpeechCall(TEXT, options={"seed": 1}), "built-in")
        assert first[44:] == to_pcm(running.model.synthesizer.speak(request).audio[0].numpy()).tobytes()
        assert 0.2 < decoded(second) < 3 and decoded(third) < 0.8 * decoded(first)
        assert [one["warnings"] for one in results] == [
            [], [], ["speed 4 was taken as 2, the nearest that can be spoken"]
        ]  # fmt: skip

    def test_items_share_the_steps_of_the_engine(self, running: Running) -> None:
        def steps() -> int:
            return running.model.synthesizer.scheduler.stats()["steps"]

        items, before = [{"input": TEXT, "seed": seed} for seed in range(4)], steps()
        for item in items:
            self.ask(running, item)
        alone, between = steps() - before, steps()
        self.ask(running, *items)
        assert steps() - between < 0.7 * alone

    def test_what_is_wrong_with_an_item_is_told_of_it_alone(self, running: Running) -> None:
        wrong: list[Any] = [5, {"input": " "}, {"input": "Hi.", "voice": "bob"}, {"input": "Hi.", "seed": []}, None]
        told = self.ask(running, *wrong, {"input": "Hi."}, model="tts-1")
        assert (told["succeeded"], told["failed"]) == (1, 5)
        assert [one["status"] for one in told["results"]] == ["error"] * 5 + ["success"]
        first, second, third, fourth, _ = (one.get("error") for one in told["results"][:5])
        assert first["message"] == "an item must be a JSON object, got 5"
        assert second["param"] == "input" and third["code"] == "voice_not_found" and fourth["param"] == "seed"
        assert running.app.speaking.num_streams == 0

    @pytest.mark.parametrize("items", [None, [], {}, "Hi.", 5, [{"input": "Hi."}] * 33])
    def test_what_is_no_batch(self, running: Running, items: Any) -> None:
        told = error_of(running.ask("POST", self.path, {"items": items}))
        assert told[0] == 400 and told[1].startswith("items must be a list of 1 to 32 requests for speech, got")

    def test_bodies_of_the_wrong_shape(self, running: Running) -> None:
        for body in (b"", b"[]", b"5", b"{"):
            assert error_of(running.ask("POST", self.path, body))[0] == 400
        many = {"items": [{"input": "x" * 600}] * 2}
        assert error_of(running.ask("POST", self.path, many)) == (
            400, "items have 1200 characters, more than 1000; send them in several batches",
        )  # fmt: skip

    def test_each_item_takes_a_place(self, running: Running) -> None:
        full = Running(running.model, ServerConfig(max_streams=2))
        try:
            told = self.ask(full, *[{"input": "Hi.", "seed": 1}] * 5)
            assert (told["succeeded"], told["failed"]) == (2, 3)
            assert {one["error"]["code"] for one in told["results"][2:]} == {"queue_full"}
            with ExitStack() as held:
                for _ in range(2):
                    held.callback(held.enter_context(full.app.speaking._admissions.admit(None)))
                status, headers, data = full.ask("POST", self.path, {"items": [{"input": "Hi."}] * 2})
            assert (status, headers["retry-after"]) == (429, "1") and b"queue_full" in data
            assert full.app.speaking.num_streams == 0
        finally:
            full.close(keeps_model=True)

    def test_whoever_leaves_ends_it(self, running: Running) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request("POST", self.path, json.dumps({"items": [{"input": " ".join([TEXT] * 4)}] * 4}))
        wait_for(lambda: running.rows > 2)
        connection.close()
        wait_for(lambda: running.rows == 0 and running.app.speaking.num_streams == 0)
