"""`chatterbox serve` as a process: what SIGTERM does to answers under way."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

DRAIN_SECONDS, LONG = 60, "/v1/audio/speech/long"
TEXT = "The tea is in the kitchen, and the cups are on the table."


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    settings = (
        f"server.voices={tmp_path}/voices",
        f"server.jobs={tmp_path}/jobs",
        f"server.drain_seconds={DRAIN_SECONDS}",
    )
    command = [sys.executable, "-m", "chatterbox.cli", "serve", "--port", "0", *settings]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    one = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
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
    with connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(text))
        socket.send(json.dumps({"type": "input.done"}))
        num_bytes, told = 0, [json.loads(socket.recv(DRAIN_SECONDS))]
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                ask(port, "GET", "/health")[0].close()
        socket.send(json.dumps(text))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                message = socket.recv(DRAIN_SECONDS)
                if isinstance(message, bytes):
                    num_bytes += len(message)
                else:
                    told.append(json.loads(message))
    assert [one["type"] for one in told if one["type"] != "audio.sentence"] == ["audio.start", "audio.done", "error"]
    assert told[-1]["error"]["code"] == "shutting_down" and num_bytes > 3 * 2 * 24_000  # three seconds and more
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    assert process.wait(DRAIN_SECONDS) == 0


def test_sigterm_before_it_speaks(process: subprocess.Popen[str]) -> None:
    """At any moment: killed where no handler is there yet, a shell's code for the signal, or as above."""
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DRAIN_SECONDS) in (-signal.SIGTERM, 128 + signal.SIGTERM, 0)
