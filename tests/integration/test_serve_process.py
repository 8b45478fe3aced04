"""`chatterbox serve` as a process: what SIGTERM does to answers under way."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

DRAIN_SECONDS, LONG = 60, "/v1/audio/speech/long"
TEXT = "The tea is in the kitchen, and the cups are on the table."


def started(folder: Path, *more: str) -> subprocess.Popen[str]:
    settings = (f"server.voices={folder}/voices", f"server.jobs={folder}/jobs", *more)
    command = [sys.executable, "-m", "chatterbox.cli", "serve", "--port", "0", *settings]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    one = started(tmp_path, f"server.drain_seconds={DRAIN_SECONDS}")
    yield one
    one.kill()
    one.wait()


def port_of(process: subprocess.Popen[str]) -> int:
    """Once it speaks."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"speaks at http://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
    raise AssertionError("it ended before it spoke")


def ask(
    port: int, method: str = "POST", path: str = "/v1/audio/speech", **body: Any
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DRAIN_SECONDS)
    connection.request(method, path, json.dumps(body))
    return connection, connection.getresponse()


def test_sigterm_lets_an_answer_end_and_takes_no_more(process: subprocess.Popen[str]) -> None:
    """Whoever follows a job is let go: it may last for hours, and goes on with the next start."""
    port, speech = port_of(process), {"input": TEXT, "response_format": "pcm", "seed": 1}
    connection, answer = ask(port, **speech)
    whole = answer.read()
    connection.close()
    following = ask(port, "GET", json.loads(ask(port, path=LONG, input=f"{TEXT}\n\n" * 50)[1].read())["sse_url"])
    connection, answer = ask(port, **speech)
    first, told = answer.read(1000), time.monotonic()
    process.send_signal(signal.SIGTERM)
    deadline = told + 5
    with pytest.raises(ConnectionError):
        while time.monotonic() < deadline:
            ask(port, "GET", "/health")[0].close()
    assert first + answer.read() == whole
    assert b'"type":"completed"' not in following[1].read()
    for one in (connection, following[0]):
        one.close()
    assert process.wait(DRAIN_SECONDS) == 0 and time.monotonic() - told < DRAIN_SECONDS
    assert process.stderr is not None and process.stderr.read() == ""


def test_sigterm_lets_a_socket_end_what_is_said_and_refuses_more(process: subprocess.Popen[str]) -> None:
    port = port_of(process)
    text = {"type": "input.text", "text": f"{TEXT} " * 3}
    with connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as own:
        own.send(json.dumps(text))
        own.send(json.dumps({"type": "input.done"}))
        num_bytes, told = 0, [json.loads(own.recv(DRAIN_SECONDS))]
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                ask(port, "GET", "/health")[0].close()
        own.send(json.dumps(text))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                message = own.recv(DRAIN_SECONDS)
                if isinstance(message, bytes):
                    num_bytes += len(message)
                else:
                    told.append(json.loads(message))
    assert [one["type"] for one in told if one["type"] != "audio.sentence"] == ["audio.start", "audio.done", "error"]
    assert told[-1]["error"]["code"] == "shutting_down" and num_bytes > 3 * 2 * 24_000  # three seconds and more
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    assert process.wait(DRAIN_SECONDS) == 0


def test_what_draining_cuts_is_told(tmp_path: Path) -> None:
    """Events end with an error, a batch has it in its items, and the log has no traceback."""
    process = started(tmp_path, "server.drain_seconds=0", "server.log_requests=true")
    port, text = port_of(process), f"{TEXT} " * 40
    connection, answer = ask(port, input=text, stream_format="sse", response_format="pcm")
    assert b"speech.audio.delta" in answer.read(2**16)
    with ThreadPoolExecutor(1) as other:
        batch = other.submit(lambda: ask(port, path="/v1/audio/speech/batch", items=[{"input": text}])[1].read())
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        last = json.loads(answer.read().decode().split("\n\n")[-2].removeprefix("data: "))
        assert (last["type"], last["error"]["code"]) == ("speech.audio.error", "shutting_down")
        (item,) = json.loads(batch.result())["results"]
        assert (item["status"], item["error"]["code"]) == ("error", "shutting_down")
    connection.close()
    assert process.wait(DRAIN_SECONDS) == 0 and process.stderr is not None
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert sorted(line["path"] for line in lines) == ["/v1/audio/speech", "/v1/audio/speech/batch"]


def test_a_default_voice_that_is_still_to_be_added_is_told(tmp_path: Path) -> None:
    process = started(tmp_path, "server.default_voice=nobody")
    assert process.stderr is not None
    assert "there is no voice 'nobody'; there are built-in" in process.stderr.readline()
    status = ask(port_of(process), input="Hi.")[1].status
    process.kill()
    process.communicate()
    assert status == 404


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("server.models=[nope]", "no model 'nope': use "),
        ("server.jobs=/dev/null", "server.jobs=/dev/null cannot be a folder: "),
        ("server.wyoming_port={taken}", "cannot listen at 127.0.0.1, port {taken}: "),
    ],
)
def test_settings_that_cannot_be_are_one_line_at_once(tmp_path: Path, setting: str, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = started(tmp_path, setting.replace("{taken}", port))
        _, said = process.communicate(timeout=DRAIN_SECONDS)
    assert process.returncode in (1, 2) and said.startswith("chatterbox: error: ") and said.count("\n") == 1
    assert message.replace("{taken}", port) in said


def test_sigterm_before_it_speaks(process: subprocess.Popen[str]) -> None:
    """At any moment: killed where no handler is there yet, a shell's code for the signal, or as above."""
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DRAIN_SECONDS) in (-signal.SIGTERM, 128 + signal.SIGTERM, 0)
