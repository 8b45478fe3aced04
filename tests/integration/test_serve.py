"""The server as its clients know it: a process's socket, `curl`'s requests, OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import logging
import socket
import threading
import time
import wave
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import pytest
import starlette.requests
import uvicorn
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

import chatterbox.serve.models
from chatterbox.checkpoints import EMBEDDED_VOICES, load_models
from chatterbox.serve import models as serve_models
from chatterbox.serve.app import Server
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.models import Defaults, Loading, ModelHub, ServedModel
from chatterbox.serve.security import Client
from chatterbox.synthesis.synthesizer import Synthesizer
from chatterbox.voice.library import VoiceLibrary, load_prepared
from tests.support.waiting import wait_for

TEXT = "The tea is in the kitchen, and the cups are on the table."
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


class Running:
    """A server of `tiny` in a thread, and calls to it."""

    def __init__(self, model: ServedModel, config: ServerConfig, keys: tuple[str, ...] = ()) -> None:
        self.model, self.config, ready = model, config, threading.Event()
        self.hub = ModelHub([Loading("tiny", lambda: model)], config)
        self.app = Server(self.hub, config, keys, on_ready=ready.set)
        self.server = uvicorn.Server(uvicorn.Config(self.app.app, port=0, log_config=None))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        assert ready.wait(60)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            given = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, given, headers)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def speak(self, **fields: Any) -> tuple[int, dict[str, str], bytes]:
        return self.ask("POST", "/v1/audio/speech", {"input": TEXT, "voice": "alloy", "seed": 1, **fields})

    def client(self, key: str = "unused") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    @property
    def rows(self) -> int:
        return self.model.synthesizer.scheduler.stats()["rows"]

    def close(self, *, keeps_model: bool = False) -> None:
        if keeps_model:
            self.hub.close = lambda: None
        self.server.should_exit = True
        self.thread.join()


def served(library: VoiceLibrary | None = None) -> ServedModel:
    models = load_models(EMBEDDED_VOICES / "tiny", "cpu")
    parts = models.t3, models.s3gen, models.tokenizer, models.voice_encoder
    return ServedModel("tiny", models, Synthesizer(*parts), library, Defaults())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("voices")
    config = ServerConfig(voices=str(folder), jobs=str(folder / "jobs"), max_upload_mib=1, max_job_input=2000)
    one = Running(served(VoiceLibrary(folder)), config)
    yield one
    one.close()


@pytest.fixture(scope="module")
def whole(running: Running) -> np.ndarray:
    """(N,) 16-bit samples of `TEXT`."""
    return np.frombuffer(running.speak(response_format="pcm")[2], "<i2")


def decoded(data: bytes) -> float:
    """Seconds of a body."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(frame.samples, frame.sample_rate) for frame in container.decode(audio=0)]
    return sum(num for num, _ in frames) / frames[0][1]


@pytest.mark.parametrize("name", FORMATS)
def test_openais_client_gets_every_format_while_it_is_made(running: Running, whole: np.ndarray, name: str) -> None:
    arguments: dict[str, Any] = {"model": "tts-1", "voice": "nova", "input": TEXT, "response_format": name}
    with running.client().audio.speech.with_streaming_response.create(**arguments, extra_body={"seed": 1}) as answer:
        parts = list(answer.iter_bytes())
        content_type = answer.headers["content-type"]
    data, seconds = b"".join(parts), len(whole) / 24_000
    assert len(parts) > 1 and content_type.startswith("audio/")
    if name == "pcm":
        assert data == whole.tobytes()
    else:
        assert seconds <= decoded(data) <= seconds + 0.1


def test_mp3_is_what_is_sent_where_no_format_is_named(running: Running) -> None:
    status, headers, data = running.ask("POST", "/v1/audio/speech", {"input": "Hi."})
    assert (status, headers["content-type"]) == (200, "audio/mpeg") and decoded(data) > 0.2
    assert "content-length" not in headers and headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("name", ["mp3", "pcm"])
def test_events_hold_the_format_that_was_asked_for(running: Running, whole: np.ndarray, name: str) -> None:
    """LiveKit asks for MP3 in events."""
    status, headers, data = running.speak(response_format=name, stream_format="sse")
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    lines = [line for line in data.decode().split("\n\n") if line != ": keep-alive"]
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    first, *deltas, last = [json.loads(line[6:]) for line in lines]
    assert first["type"] == "speech.audio.info" and first["sample_rate"] == 24_000
    body = b"".join(base64.b64decode(one["audio"]) for one in deltas)
    assert {one["type"] for one in deltas} == {"speech.audio.delta"} and len(deltas) > 1
    assert body == whole.tobytes() if name == "pcm" else decoded(body) > 1
    usage = last["usage"]
    assert last["type"] == "speech.audio.done" and usage["input_tokens"] > 10
    assert usage["output_tokens"] == pytest.approx(len(whole) / 960, abs=2)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize("text", [".", "...", "!?", "\N{GRINNING FACE}", "\N{ZERO WIDTH SPACE}.", "\ud800."])
def test_home_assistants_probe_is_a_short_sound(running: Running, text: str) -> None:
    """It posts "." to see whether a server speaks. Nothing can be said of it, which the caller is told."""
    for name in FORMATS:
        status, headers, data = running.speak(input=text, response_format=name)
        seconds = len(data) / 48_000 if name == "pcm" else decoded(data)
        assert status == 200 and 0.2 < seconds < 0.5
        assert headers["x-chatterbox-warning"] == "input has nothing to speak; a moment of silence stands for it"


def test_halves_of_characters_are_no_text(running: Running) -> None:
    plain, halves = (running.speak(input=text, response_format="pcm") for text in ("Hi you.", "Hi \ud83d you.\udc00"))
    assert (plain[0], halves[0]) == (200, 200) and len(halves[2]) > 0.5 * len(plain[2])


def test_what_clients_do_is_no_fault_in_the_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as one:
        one.sendall(b'POST /v1/audio/speech HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{"input"')
        time.sleep(0.2)
    assert running.ask("DELETE", "/v1/audio/voices/nobody")[0] == 404
    path, slow = "/v1/audio/speech/long", f"{TEXT}\n\n" * 20
    job = json.loads(running.ask("POST", path, {"input": slow, "voice": "alloy"})[2])
    with ThreadPoolExecutor(1) as other:
        followed = other.submit(running.ask, "GET", job["sse_url"])
        time.sleep(0.5)
        assert running.ask("DELETE", f"{path}/{job['job_id']}")[0] == 200
    assert '"code":"job_not_found"' in followed.result()[2].decode().split("\n\n")[-2]
    assert running.ask("GET", "/health")[0] == 200
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_errors_are_openais(running: Running) -> None:
    client = running.client()
    with pytest.raises(openai.NotFoundError, match="there is no voice 'bob'; there are built-in") as caught:
        client.audio.speech.create(model="tts-1", voice="bob", input="Hi.")
    assert (caught.value.code, caught.value.param) == ("voice_not_found", "voice")
    with pytest.raises(openai.BadRequestError, match="exaggeration must be a number from 0 to 10") as wrong:
        client.audio.speech.create(model="tts-1", voice="alloy", input="Hi.", extra_body={"exaggeration": 99})
    assert (wrong.value.code, wrong.value.param) == ("invalid_value", "exaggeration")
    with pytest.raises(openai.BadRequestError, match="input must be a text"):
        client.audio.speech.create(model="tts-1", voice="alloy", input=" ")
    for method, path, status in (("GET", "/v1/audio/speech", 405), ("GET", "/v1/nothing", 404)):
        got, _, data = running.ask(method, path)
        assert got == status and json.loads(data)["error"]["message"]
    assert running.ask("PATCH", "/v1/audio/voices")[1]["allow"] == "GET, HEAD, POST"
    status, _, data = running.ask("POST", "/v1/audio/speech", b"{")
    assert status == 400 and json.loads(data)["error"]["code"] == "invalid_json"


def test_lists(running: Running) -> None:
    assert [one.id for one in running.client().models.list()] == ["tiny"]
    assert running.client().models.retrieve("tiny").owned_by == "chatterbox"
    assert json.loads(running.ask("GET", "/v1/audio/models")[2]) == {"models": [{"id": "tiny", "name": "tiny"}]}
    voices = json.loads(running.ask("GET", "/v1/audio/voices")[2])["voices"]
    assert [(one["id"], one["name"]) for one in voices] == [("built-in", "built-in")]
    assert json.loads(running.ask("GET", "/v1/audio/voices?legacy=true")[2]) == {"voices": ["built-in"]}
    assert json.loads(running.ask("GET", "/health")[2])["status"] == "healthy"
    assert running.ask("GET", "/ready")[0] == 200 and running.ask("GET", "/v1/")[0] == 200
    with pytest.raises(openai.NotFoundError):
        running.client().models.retrieve("other")


def test_voices_by_name_are_spoken_and_listed(running: Running) -> None:
    model = running.model
    model._library.add("mary", model._models.conds, {})
    assert "mary" in running.ask("GET", "/v1/audio/voices?legacy=true")[2].decode()
    status, _, data = running.speak(voice="mary", response_format="pcm")
    assert status == 200 and len(data) > 48_000
    model._library.remove("mary")
    assert running.speak(voice="mary")[0] == 404


def upload(running: Running, name: str, recording: bytes, **fields: str) -> dict[str, Any]:
    form = {"name": name, "consent": "none", **fields}
    return running.client().post(
        "/audio/voices", cast_to=dict[str, Any], body=form, files={"audio_sample": ("mary.wav", recording)},
        options={"headers": {"content-type": "multipart/form-data"}},
    )  # fmt: skip


def test_a_recording_becomes_a_voice(running: Running) -> None:
    """Of whatever it is a recording; its name is a file's, and the voice is there after a restart."""
    recording = running.speak(response_format="wav")[2]
    told = upload(running, "Aunt Mary/..", recording)
    assert (told["id"], told["name"], told["object"]) == ("Aunt-Mary", "Aunt Mary/..", "audio.voice")
    assert "Aunt-Mary" in VoiceLibrary(running.model._library.folder).names()
    ours, mary = (running.speak(voice=name, response_format="pcm")[2] for name in ("alloy", "Aunt-Mary"))
    assert len(mary) > 48_000 and mary != ours
    for name in ("Aunt Mary", "Aunt Mary.wav"):  # as other servers name voices
        assert running.speak(voice=name, response_format="pcm")[2] == mary
    for name in ("../Aunt-Mary", "voices\\Aunt-Mary.wav", "Aunt-Mary.exe"):
        assert running.speak(voice=name)[0] == 404
    with pytest.raises(openai.ConflictError, match="there is a voice 'Aunt-Mary' already"):
        upload(running, "Aunt Mary", recording)
    assert json.loads(running.ask("DELETE", "/v1/audio/voices/Aunt-Mary")[2])["deleted"] is True
    assert running.ask("DELETE", "/v1/audio/voices/Aunt-Mary")[0] == 404
    assert running.ask("DELETE", "/v1/audio/voices/built-in")[0] == 409


def test_names_of_other_letters(running: Running) -> None:
    """Accents fall; two names that differ in letters alone must not be one voice."""
    recording = running.speak(response_format="wav")[2]
    assert upload(running, "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}.wav", recording)["id"] == "Zoe"
    for name in ("Zo\N{LATIN SMALL LETTER A WITH DIAERESIS}", "Zo", "\u5c0f\u660e", "Zo\u58f0"):
        assert running.speak(voice=name, response_format="pcm")[0] == 404
    for name in ("\u5c0f\u660e", "Zo \u58f0", "\u0416"):
        with pytest.raises(openai.BadRequestError, match="letters of a to z, or digits, and no other letters, got"):
            upload(running, name, recording)
    path = "/voices/Zo%C3%AB.wav"
    assert running.ask("GET", path)[0] == 200
    assert running.ask("PUT", path, {"new_name": "Zoe2"}, **{"content-type": "application/json"})[0] == 200
    listed = {one["id"]: one["name"] for one in json.loads(running.ask("GET", "/v1/audio/voices")[2])["voices"]}
    assert listed["Zoe2"] == "Zoe2" and "Zoe" not in listed
    assert running.ask("DELETE", "/v1/audio/voices/Zoe2.wav")[0] == 200


def test_a_name_is_given_once_and_taken_once_by_whoever_asks_at_once(running: Running) -> None:
    recording = running.speak(response_format="wav")[2]

    def added(_: int) -> int:
        try:
            return 200 if upload(running, "twin", recording)["id"] == "twin" else 0
        except openai.APIStatusError as error:
            return error.status_code

    with ThreadPoolExecutor(3) as threads:
        assert sorted(threads.map(added, range(3))) == [200, 409, 409]
        removed = threads.map(lambda _: running.ask("DELETE", "/v1/audio/voices/twin")[0], range(3))
        assert sorted(removed) == [200, 404, 404]


def test_voices_that_were_removed_are_not_kept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory; and one that is removed while it is asked for is not there, which is no fault of the server."""
    model, library = running.model, running.model._library
    for name in ("first", "second"):
        library.add(name, model._models.conds, {})
        assert running.speak(voice=name, input="Hi.")[0] == 200
        library.remove(name)
    assert "second" in model._prepared and "first" not in model._prepared

    def removing(path: Any, models: Any) -> Any:
        library.remove("third")
        return load_prepared(path, models)

    library.add("third", model._models.conds, {})
    monkeypatch.setattr(chatterbox.serve.models, "load_prepared", removing)
    status, _, data = running.speak(voice="third")
    assert (status, json.loads(data)["error"]["code"]) == (404, "voice_not_found")


@pytest.mark.parametrize(
    ("name", "recording", "error", "message"),
    [
        ("noise", b"no audio at all", openai.BadRequestError, "cannot be read as audio"),
        ("empty", b"", openai.BadRequestError, "audio_sample is empty"),
        (
            "..",
            b"RIFF",
            openai.BadRequestError,
            "letters of a to z, or digits, and no other letters, got '..'",
        ),
        ("built-in", b"RIFF", openai.BadRequestError, "a voice cannot be called 'built-in'"),
        ("large", bytes(2**20 + 1), openai.APIStatusError, "more than 1 MiB"),
    ],
)
def test_what_is_no_recording_is_refused(
    running: Running, name: str, recording: bytes, error: Any, message: str
) -> None:
    before = running.model._library.names()
    with pytest.raises(error, match=message):
        upload(running, name, recording)
    assert running.model._library.names() == before


def test_a_consent_is_answered_and_not_kept(running: Running) -> None:
    def consent(recording: bytes, **form: str) -> Any:
        return running.client().post(
            "/audio/voice_consents", cast_to=dict[str, Any], body=form, files={"recording": ("yes.wav", recording)},
            options={"headers": {"content-type": "multipart/form-data"}},
        )  # fmt: skip

    told = consent(b"any", name="Mary", language="en-US")
    assert (told["object"], told["name"], told["language"]) == ("audio.voice_consent", "Mary", "en-US")
    assert running.ask("GET", f"/v1/audio/voice_consents/{told['id']}")[0] == 404
    for recording, form in ((b"any", {"name": " ", "language": "en"}), (b"any", {"name": "Mary"})):
        with pytest.raises(openai.BadRequestError, match="must be given"):
            consent(recording, **form)
    with pytest.raises(openai.APIStatusError, match="more than 1 MiB"):
        consent(bytes(2**20 + 1), name="Mary", language="en")
    status, _, data = running.ask("POST", "/v1/audio/voice_consents", {"name": "Mary", "language": "en"})
    assert status == 400 and json.loads(data)["error"]["param"] == "recording"


def _logged(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    """The lines of requests by their ids."""
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    return {line["request"]: line for line in lines}


def test_a_request_has_an_id_and_a_line_without_its_text(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "chatterbox.serve.requests"):
        own = running.ask("POST", "/v1/audio/speech", {"input": TEXT}, **{"x-request-id": "mine-7"})[1]["x-request-id"]
        drawn = running.ask("GET", "/v1/models?x=secret", **{"x-request-id": "a b\tc"})[1]["x-request-id"]
        # The line of a request that another test made may come as late.
        wait_for(lambda: {own, drawn} <= _logged(caplog).keys())
    assert own == "mine-7" and drawn.startswith("req_")
    first = _logged(caplog)[own]
    assert (first["status"], first["path"]) == (200, "/v1/audio/speech")
    assert 0 < first["first_byte"] <= first["seconds"] and _logged(caplog)[drawn]["path"] == "/v1/models"
    assert "tea" not in caplog.text and "secret" not in caplog.text


def test_the_page_is_the_packages_own(running: Running) -> None:
    """Its files and no others; it may load nothing from elsewhere. tests/integration/test_serve_page.py uses it."""
    status, headers, data = running.ask("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"<main>" in data
    assert headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("app.js", "audio.js", "worklets.js", "style.css"):
        status, headers, data = running.ask("GET", f"/page/{name}")
        assert status == 200 and data and b"http" not in data.replace(b"http-equiv", b"")
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "none.js", "", "/etc/passwd"):
        assert running.ask("GET", f"/page/{name}")[0] in (404, 307)
    about = json.loads(running.ask("GET", "/info")[2])
    assert about["models"][0]["name"] == "tiny" and "hit_rate" in about["models"][0]["cache"]


def test_a_long_text_is_a_job(running: Running) -> None:
    path, text = "/v1/audio/speech/long", f"{TEXT}\n\n{TEXT}"
    status, _, data = running.ask("POST", path, {"input": text, "voice": "alloy", "response_format": "wav"})
    job = json.loads(data)
    assert status == 202 and (job["total_chunks"], job["response_format"]) == (2, "wav")
    events = [
        json.loads(line[6:])
        for line in running.ask("GET", job["sse_url"])[2].decode().splitlines()
        if line[:4] == "data"
    ]
    assert events[-1]["type"] == "completed" and events[-1]["progress"] == 1
    status, headers, data = running.ask("GET", job["download_url"])
    assert status == 200 and headers["content-disposition"].endswith('.wav"') and data[:4] == b"RIFF"
    assert len(data) / 48_000 == pytest.approx(events[-1]["duration_seconds"], abs=0.01)
    with wave.open(io.BytesIO(data)) as file:
        assert file.getnframes() == (len(data) - 44) // 2
    assert [one["job_id"] for one in json.loads(running.ask("GET", path)[2])["jobs"]] == [job["job_id"]]
    assert running.ask("PUT", f"{path}/{job['job_id']}/pause")[0] == 409
    assert running.ask("DELETE", f"{path}/{job['job_id']}")[0] == 200
    for method, rest in (("GET", ""), ("GET", "/download"), ("GET", "/sse"), ("PUT", "/resume"), ("DELETE", "")):
        assert running.ask(method, f"{path}/{job['job_id']}{rest}")[0] == 404
    for fields, message in (
        ({"input": "x" * 2001}, "more than 2000"),
        ({"input": "Hi.", "voice": "bob"}, "no voice 'bob'"),
        ({"input": "Hi.", "exaggeration": 99}, "exaggeration must be"),
    ):
        status, _, data = running.ask("POST", path, fields)
        error = json.loads(data)["error"]
        assert status in (400, 404) and message in error["message"] and error["param"] in fields
    assert json.loads(running.ask("GET", path)[2]) == {"jobs": []}


def test_metrics_say_how_it_speaks(running: Running) -> None:
    running.speak()
    text = running.ask("GET", "/metrics")[2].decode()
    found = {sample.name: sample.value for one in text_string_to_metric_families(text) for sample in one.samples}
    assert found["chatterbox_first_audio_seconds_count"] >= 1 and found["chatterbox_audio_seconds_total"] > 1
    assert found["chatterbox_engine_rows"] == 0 and found["chatterbox_streams"] == 0
    assert found["chatterbox_cache_cached_tokens_total"] > 0 and 0 < found["chatterbox_cache_hit_rate"] <= 1
    assert TEXT not in text


def test_models_that_are_not_known_are_answered_with_a_warning(running: Running) -> None:
    _, headers, _ = running.speak(model="gpt-9-tts", instructions="Whisper.")
    warning = headers["x-chatterbox-warning"]
    assert "there is no model 'gpt-9-tts'; tiny answered" in warning and "instructions have no effect" in warning
    assert "x-chatterbox-warning" not in running.speak(model="tts-1-hd")[1]
    body = {"input": "Hi.", "model": "gpt-9-tts", "instructions": "Whisper."}
    job = json.loads(running.ask("POST", "/v1/audio/speech/long", body)[2])
    assert "; ".join(job["warnings"]) == warning
    assert running.ask("DELETE", job["status_url"])[0] == 200


def test_whoever_leaves_gives_the_rows_back(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    body = json.dumps({"input": " ".join([TEXT] * 20), "voice": "alloy", "response_format": "pcm"})
    connection.request("POST", "/v1/audio/speech", body)
    answer = connection.getresponse()
    assert answer.read(1000) and running.rows > 0
    answer.close()
    connection.close()
    wait_for(lambda: running.rows == 0)


def test_whoever_leaves_before_the_body_gives_the_place_back(running: Running) -> None:
    """The response is made, and its reader is gone before it is called for its first byte."""
    speaking = running.app.speaking
    answer = asyncio.run(_answered(speaking, {"input": "Hi.", "stream_format": "sse"}))
    assert speaking.num_streams == 1

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def never(message: Any) -> None:
        raise OSError("it has left")

    with pytest.raises((OSError, starlette.requests.ClientDisconnect)):
        asyncio.run(answer({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, never))
    assert speaking.num_streams == 0


def test_whoever_is_cancelled_before_the_first_piece_gives_the_place_back(running: Running) -> None:
    """As a session is whose client barges in, or leaves, while it is told that audio begins."""
    speaking = running.app.speaking

    async def cancelled() -> int:
        made = (await speaking.say(Client(), SpeechCall("Hi.", format="pcm"))).pieces
        held = speaking.num_streams
        await made.aclose()
        return held

    assert asyncio.run(cancelled()) == 1 and speaking.num_streams == 0


async def _answered(speaking: Any, body: dict[str, str]) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    return await speaking.speech(starlette.requests.Request({"type": "http", "headers": []}, receive))


def test_a_full_server_says_so_before_the_first_byte(running: Running) -> None:
    full = Running(running.model, ServerConfig(max_streams=1))
    try:
        connection = http.client.HTTPConnection("127.0.0.1", full.port, timeout=60)
        body = json.dumps({"input": " ".join([TEXT] * 20), "response_format": "pcm"})
        connection.request("POST", "/v1/audio/speech", body)
        answer = connection.getresponse()
        with pytest.raises(openai.RateLimitError) as caught:
            full.client().audio.speech.create(model="tts-1", voice="alloy", input="Hi.")
        assert caught.value.code == "queue_full" and caught.value.response.headers["retry-after"] == "1"
        answer.close()
        connection.close()
        wait_for(lambda: full.speak(input="Hi.")[0] == 200)
    finally:
        full.close(keeps_model=True)


def test_a_key_is_asked_for(running: Running) -> None:
    keyed = Running(running.model, ServerConfig(), ("secret", "other"))
    try:
        hello = {"model": "tts-1", "voice": "alloy", "input": "Hi.", "response_format": "wav"}
        for key in ("wrong", "secre"):
            with pytest.raises(openai.AuthenticationError, match="the key is none of the server's"):
                keyed.client(key).audio.speech.create(**hello)
        status, _, data = keyed.ask("POST", "/v1/audio/speech", hello)
        assert status == 401 and "a key is needed" in json.loads(data)["error"]["message"]
        for scheme in ("bearer secret", "BEARER  secret"):
            assert keyed.ask("POST", "/v1/audio/speech", hello, authorization=scheme)[0] == 200
        for key in ("secret", "other"):
            assert keyed.client(key).audio.speech.create(**hello).content
        for key, status in (("secret", 200), ("sécret", 401)):
            assert keyed.ask("POST", "/v1/audio/speech", hello, **{"x-api-key": key})[0] == status
        assert keyed.ask("GET", "/v1/audio/voices")[0] == 200  # Open WebUI asks without one
        assert keyed.ask("DELETE", "/v1/audio/voices/x")[0] == 401
    finally:
        keyed.close(keeps_model=True)


def test_what_fails_behind_the_first_bytes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events end with an error; audio is cut, as a client must not take it for all there is."""
    stream = running.model.synthesizer.stream

    def failing(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(stream(*arguments, **options))
        raise RuntimeError("a secret of the server's")

    monkeypatch.setattr(running.model.synthesizer, "stream", failing)
    status, _, data = running.speak(stream_format="sse")
    last = json.loads(data.decode().split("\n\n")[-2][6:])
    assert status == 200 and last["type"] == "speech.audio.error"
    assert last["error"]["code"] == "server_fault" and "secret" not in data.decode()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        running.speak(response_format="pcm")


def test_health_says_whether_it_speaks(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers no request is not healthy, and one that does again is."""
    own = running.model.synthesizer

    def fails(*arguments: Any, **options: Any) -> Iterator[Any]:
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as broken:
        broken.setattr(own, "stream", fails)
        broken.setattr(own, "speak", fails)
        assert running.speak()[0] == 500
        status, _, data = running.ask("GET", "/health")
        assert (status, json.loads(data)["status"]) == (503, "error")
    assert running.speak(input="Hi.")[0] == 200
    assert json.loads(running.ask("GET", "/health")[2])["status"] == "healthy"


def test_one_key_has_its_own_limits(running: Running) -> None:
    limited = Running(running.model, ServerConfig(key_rate=2), ("first", "second"))
    try:
        hello = {"input": "Hi.", "response_format": "pcm"}
        answers = [limited.ask("POST", "/v1/audio/speech", hello, **{"x-api-key": "first"}) for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 429]
        assert json.loads(answers[2][2])["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[2][1]["retry-after"]) <= 60
        assert limited.ask("POST", "/v1/audio/speech", hello, **{"x-api-key": "second"})[0] == 200
    finally:
        limited.close(keeps_model=True)


def test_a_model_that_nobody_uses_is_unloaded_and_comes_back() -> None:
    models = [served() for _ in range(2)]
    parts = [weakref.ref(one.synthesizer.t3) for one in models]
    hub = ModelHub([Loading("tiny", models.pop)], ServerConfig())
    with hub.used("tiny"):
        hub.get("tiny")
        assert hub.unload_idle(0.0) == []
    assert hub.unload_idle(60.0) == [] and [one.name for one in hub.loaded] == ["tiny"]
    assert hub.unload_idle(0.0) == ["tiny"] and hub.loaded == [] and parts[1]() is None
    assert hub.unload_idle(0.0) == []
    again = hub.asked(SpeechCall("Hi."))
    assert again.model.synthesizer.speak(again.request).audio.shape[1] > 0
    hub.close()


def test_a_server_unloads_and_warms_as_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, warmed = served(), list[Any]()
    monkeypatch.setattr(model.synthesizer, "warm", warmed.extend)
    one = Running(model, ServerConfig(unload_seconds=1.0, warm=("built-in",)))
    try:
        assert [request.text for request in warmed] == [""]
        wait_for(lambda: one.hub.loaded == [])
    finally:
        one.close()


def test_a_voice_that_cannot_be_warmed_is_told_at_once(running: Running) -> None:
    failures, config = list[Exception](), ServerConfig(warm=("bob",))
    hub = ModelHub([Loading("tiny", lambda: running.model)], config)
    server = Server(hub, config, on_failure=failures.append)
    hub.close = lambda: None  # type: ignore[method-assign]

    async def begun() -> None:
        async with server.app.router.lifespan_context(server.app):
            while not failures:
                await asyncio.sleep(0.01)

    asyncio.run(begun())
    assert "there is no voice 'bob'" in str(failures[0])


def test_a_request_is_a_span_of_its_callers_trace(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    running.ask("POST", "/v1/audio/speech", {"input": "Hi.", "response_format": "pcm"}, traceparent=parent)
    wait_for(spans.get_finished_spans)
    (span,) = spans.get_finished_spans()
    assert span.name == "chatterbox.speech" and format(span.context.trace_id, "032x") == "a" * 32
    told = dict(span.attributes or {})
    assert (told["chatterbox.model"], told["chatterbox.outcome"]) == ("tiny", "spoken")
    assert told["chatterbox.audio_seconds"] > 0 and [one.name for one in span.events] == ["first audio"]
    assert "Hi." not in str(told)


def test_pages_of_other_origins_change_nothing(running: Running) -> None:
    """A form that a page elsewhere sends needs no permission of the server; what is asked alone harms nobody."""
    own, other = f"http://127.0.0.1:{running.port}", "https://example.org"
    hello = {"input": "Hi.", "response_format": "pcm"}
    for origin, status in ((own, 200), (other, 403), ("null", 403)):
        got, _, data = running.ask("POST", "/v1/audio/speech", hello, origin=origin)
        assert got == status and (got == 200 or json.loads(data)["error"]["code"] == "origin_not_allowed")
    form = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nMary\r\n--x--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert running.ask("POST", "/v1/audio/voices", form, origin=other, **kind)[0] == 403
    assert running.ask("DELETE", "/v1/audio/voices/mary", origin=other)[0] == 403
    assert running.ask("GET", "/v1/models", origin=other)[0] == 200
    named = Running(running.model, ServerConfig(origins=(other,)))
    try:
        assert named.ask("POST", "/v1/audio/speech", hello, origin=other)[0] == 200
    finally:
        named.close(keeps_model=True)


def test_a_voice_whose_file_is_broken_is_told_without_its_folder(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path)
    (tmp_path / "mary.safetensors").write_bytes(b"half of a voice")
    model = served(library)
    with pytest.raises(ApiError, match="the file of voice 'mary' is no whole voice") as caught:
        model.request(SpeechCall("Hi."), "mary")
    assert (caught.value.status, caught.value.code) == (409, "voice_is_broken") and str(tmp_path) not in str(
        caught.value
    )
    model.close()


def test_a_model_holds_no_more_voices_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_models, "MOST_PREPARED", 2)
    library, model = VoiceLibrary(tmp_path), served(VoiceLibrary(tmp_path))
    own = model.request(SpeechCall("Hi."), "built-in").conditionals
    for name in ("anna", "bob", "mary"):
        library.add(name, own, {})
    heard = {name: model.request(SpeechCall("Hi."), name).conditionals for name in ("anna", "bob", "anna", "mary")}
    assert model.request(SpeechCall("Hi."), "anna").conditionals is heard["anna"]
    assert model.request(SpeechCall("Hi."), "bob").conditionals is not heard["bob"]
    model.close()
