"""The README's snippets, run on the embedded voice."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets(offline):
    script = "\n".join(snippets("python"))
    assert "ChatterboxTTS.from_pretrained" in script
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d seconds of audio\n", done.stdout)
    assert soundfile.info("cloned.wav").duration > 0.5 < soundfile.info("streamed.wav").duration


def test_first_snippet_is_the_three_commands():
    commands = [line.split()[:2] for line in snippets("sh")[0].splitlines()]
    assert commands == [["make", "say"], ["make", "test"], ["make", "serve"]]


def test_every_extra_is_named():
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    names = set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE))
    assert {"speed", "normalize", "dev"} <= names
    paragraph = README.partition("Extras: ")[2].partition("\n\n")[0]
    assert names - {"docs", "train"} <= set(re.findall(r"`(\w+)`", paragraph))


def test_commands_are_the_commands(offline):
    """Every command parses; those of the embedded voice run."""
    from chatterbox.cli import main

    lines = [shlex.split(line) for line in snippets("sh")[1].splitlines()]
    assert len(lines) == 7 and all(line[:2] == ["chatterbox", "say"] for line in lines)
    assert main(lines[0][1:]) == 0
    os.replace("hello.wav", "reference.wav")
    assert main(lines[1][1:]) == 0
    assert soundfile.info("hello.wav").duration > 0.3
    assert main(lines[4][1:]) == 0
    assert len(list(Path("voices").iterdir())) == 2  # the voice and its text; tiny is spoken without guidance


def test_streaming_commands(offline):
    from chatterbox.cli import main

    alone, piped = snippets("sh")[4].splitlines()
    assert main(shlex.split(alone)[1:]) == 0
    assert soundfile.info("hello.wav").duration > 0.3
    assert [part.split()[0] for part in piped.split("|")] == ["llm", "chatterbox", "aplay"]
    command = [sys.executable, "-m", "chatterbox.cli", *piped.split("|")[1].split()[1:]]
    done = subprocess.run(command, input=b"Hello there.", capture_output=True)
    assert done.returncode == 0 and len(done.stdout) > 0.3 * 2 * 24_000


def test_the_servers_commands(offline):
    """It is started as said, and answers what `curl` sends; tests/integration/test_serve.py asks much more."""
    serve, curl = (shlex.split(line) for line in snippets("sh")[3].splitlines())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert serve == ["chatterbox", "serve", "--port", "8000"] and curl[:2] == ["curl", "localhost:8000/v1/audio/speech"]
    command = [sys.executable, "-m", "chatterbox.cli", "serve", "--port", port]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert f"http://127.0.0.1:{port}/v1/audio/speech" in server.stderr.readline()
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
            connection.request("POST", "/v1/audio/speech", curl[curl.index("-d") + 1])
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("content-type")) == (200, "audio/mpeg") and len(
                answer.read()
            ) > 5000
        finally:
            server.terminate()
        assert server.wait(30) == 0


def test_a_policy_on_one_command_line(offline):
    from chatterbox.cli import main

    say, bench = (shlex.split(line) for line in snippets("sh")[2].splitlines())
    assert main(say[1:]) == 0 and soundfile.info("hello.wav").duration > 0.1
    quick = ["benchmark=quick", "-o", "table"]
    assert main([*bench[1:], *quick]) == 0
    assert len(Path("table", "jobs.jsonl").read_text().splitlines()) == 4
