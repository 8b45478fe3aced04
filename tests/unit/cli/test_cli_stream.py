"""``chatterbox stream``: audio before the text's end, whole files or none, quiet ends, players."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from chatterbox.cli import main, sinks, stream
from chatterbox.cli.errors import UsageError
from chatterbox.cli.pieces import InputPieces
from tests.support.folders import SMALL

SAMPLES = SMALL.sampling.max_new_tokens * 960  # of an utterance: random weights never end one
TEXT = "Hello there."
SUMMARY = r".*: 0\.32 s of audio in \d chunks, .* s of waiting, real-time factor .*, model .*"


class Standard:
    """Stands for sys.stdin or sys.stdout on a file descriptor."""

    def __init__(self, fd: int, is_terminal: bool = False) -> None:
        self._fd, self._is_terminal = fd, is_terminal

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self._is_terminal

    def flush(self) -> None: ...


@pytest.fixture
def run(small_folder, tmp_path, monkeypatch, capfdbinary):
    """Runs the command on the small model: (exit code, standard output as bytes, standard error)."""

    def run_(*arguments: str, terminal: bool = False) -> tuple[int, bytes, str]:
        if terminal:
            monkeypatch.setattr(sys, "stdout", Standard(1, is_terminal=True))
        arguments = tuple(one.replace("OUT", str(tmp_path / "out")) for one in arguments)
        try:
            code = main(["stream", *arguments, "--model", str(small_folder), "--seed", "1", "watermark=false"])
        except SystemExit as exit_:
            code = exit_.code
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run_


@pytest.fixture
def written(monkeypatch) -> int:
    """The end to write to of a pipe that is standard input."""
    reads, writes = os.pipe()
    monkeypatch.setattr(sys, "stdin", Standard(reads))
    yield writes
    for fd in (reads, writes):
        with contextlib.suppress(OSError):  # the test closed it
            os.close(fd)


def files(tmp_path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def last_line(err: str) -> str:
    return [line for line in err.splitlines() if "warning" not in line][-1]


OTHERS: set[threading.Thread] = set()  # of models that other tests share


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


def no_thread_is_left() -> bool:
    """Whether all threads end within a moment: the one that reads the text is told, not waited for."""
    until = time.monotonic() + 5
    while left := [one for one in set(threading.enumerate()) - OTHERS if one.name.startswith("chatterbox")]:
        if time.monotonic() > until:
            return False
        left[0].join(0.01)
    return True


def test_samples_to_standard_output(run):
    code, out, err = run(TEXT)
    assert code == 0 and len(out) == 2 * SAMPLES and re.fullmatch(SUMMARY, last_line(err))
    assert np.abs(np.frombuffer(out, "<i2")).max() > 300
    assert run("-o", "-", TEXT)[1] == out


def test_settings_reach_the_stream(run):
    def num_chunks(setting: str) -> int:
        _, out, err = run(TEXT, "sampling.max_new_tokens=40", setting)
        assert len(out) == 2 * 40 * 960
        return int(re.search(r"in (\d+) chunks", last_line(err))[1])

    few, some, many = map(num_chunks, ("streaming=smooth", "streaming=low_latency", "streaming.chunk_size=5"))
    assert 1 < few < some < many


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_file_holds_the_same_samples(run, tmp_path, kind):
    _, out, _ = run(TEXT)
    code, nothing, err = run(TEXT, "-o", f"OUT.{kind}")
    assert code == 0 and nothing == b"" and files(tmp_path) == [f"out.{kind}"]
    assert f"out.{kind}: 0.32 s of audio" in last_line(err)
    samples, rate = soundfile.read(tmp_path / f"out.{kind}", dtype="int16")
    assert rate == 24_000 and samples.tobytes() == out


def test_wav_of_unknown_length(run):
    _, raw, _ = run(TEXT)
    code, wav, _ = run(TEXT, "--wav")
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert code == 0 and rate == 24_000 and samples.tobytes() == raw and wav[:4] == b"RIFF"


def test_loud_samples_are_clipped():
    assert sinks.pcm(np.array([0.0, 2.0, -2.0, 1 / 32767], np.float32)).tolist() == [0, 32767, -32767, 1]


@pytest.mark.parametrize("arguments", [(), ("-",), ("streaming.chunk_size=5",)])
def test_speech_begins_before_the_text_ends(run, written, monkeypatch, arguments):
    """What follows is written only when the first sentence is heard."""
    os.write(written, b"Hello there. An")
    heard = []

    def pcm(audio: np.ndarray) -> np.ndarray:
        if not heard:
            os.write(written, b"d so on.")
            os.close(written)
        heard.append(len(audio))
        return sinks.pcm(audio)

    monkeypatch.setattr(stream, "pcm", pcm)
    code, out, _ = run(*arguments)
    assert code == 0 and len(out) == 2 * sum(heard) == 2 * 2 * SAMPLES


def test_text_on_standard_input_is_the_argument(run, written):
    _, expected, _ = run(TEXT)
    os.write(written, TEXT.encode())
    os.close(written)
    assert run()[1] == expected


@pytest.mark.parametrize("given", [b"", b" \n \n", "\N{GRINNING FACE}\n".encode()])
def test_text_without_words(run, written, tmp_path, given):
    os.write(written, given) if given else None
    os.close(written)
    code, out, err = run()
    assert code == 0 and out == b"" and "the text ended before it said anything" in err


def test_no_file_without_speech(run, written, tmp_path):
    os.close(written)
    code, _, err = run("-o", "OUT.wav")
    assert code == 1 and "nothing was said" in last_line(err) and files(tmp_path) == []


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("output", ["OUT.wav", "-"])
def test_interruption_leaves_nothing(run, written, monkeypatch, tmp_path, kind, output):
    """While more text is waited for, which never comes."""
    os.write(written, b"Hello there. An")
    (tmp_path / "out.wav").write_text("what was there before")

    def pcm(audio: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), kind)
        return sinks.pcm(audio)

    monkeypatch.setattr(stream, "pcm", pcm)
    before = signal.getsignal(kind)
    code, _, err = run("-o", output)
    assert code == 128 + kind and last_line(err) == "chatterbox: error: interrupted" and "Traceback" not in err
    assert files(tmp_path) == ["out.wav"] and (tmp_path / "out.wav").read_text() == "what was there before"
    assert no_thread_is_left() and signal.getsignal(kind) is before


def test_a_failure_leaves_nothing(run, monkeypatch, tmp_path):
    def fails(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(stream, "pcm", fails)
    code, _, err = run(TEXT, "-o", "OUT.wav")
    assert code == 1 and last_line(err) == "chatterbox: error: no space left on device"
    assert files(tmp_path) == [] and no_thread_is_left()


def test_a_reader_that_has_enough(run, monkeypatch):
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(sys, "stdout", Standard(writes))
    code, _, err = run(TEXT)
    os.close(writes)
    assert code == 0 and "Traceback" not in err and "s of audio" not in err and no_thread_is_left()


def test_bytes_that_are_no_text(run, written):
    os.write(written, "Hello there. And ü".encode() + b"\xff then")
    os.close(written)
    code, out, err = run()
    assert code == 1 and "standard input is not UTF-8: byte 0xff" in last_line(err) and len(out) == 2 * SAMPLES


class TestPieces:
    def test_come_as_they_are_written(self):
        reads, writes = os.pipe()
        pieces = iter(InputPieces(reads))
        whole = "\ufeffGrüße, ".encode()
        os.write(writes, whole[:6])  # half of a letter
        assert next(pieces) == "Gr"
        os.write(writes, whole[6:])
        assert next(pieces) == "üße, "
        os.close(writes)
        assert list(pieces) == []

    def test_stop_lets_go_of_who_waits(self):
        reads, _ = os.pipe()
        pieces, got = InputPieces(reads), []
        reader = threading.Thread(target=lambda: got.extend(pieces), daemon=True)
        reader.start()
        pieces.stop()
        reader.join(30)
        assert not reader.is_alive() and got == []

    def test_a_line_of_a_terminal_is_a_paragraph(self):
        ours, theirs = os.openpty()
        pieces = iter(InputPieces(theirs))
        os.write(ours, b"Hello\n")
        assert next(pieces) == "Hello\n\n"
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Makes a player, a script, and there is no other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install_(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install_


@pytest.mark.parametrize(("player", "header_len"), [("aplay", 0), ("ffplay", 44), ("paplay", 0), ("pw-play", 0)])
def test_a_terminal_hears_a_player(run, install, tmp_path, player, header_len):
    install(player, f'echo "$@" > {tmp_path}/options; /bin/cat > {tmp_path}/heard')
    code, out, err = run(TEXT, terminal=True)
    assert code == 0 and out == b"" and last_line(err).startswith(f"{player}: 0.32 s of audio")
    assert len((tmp_path / "heard").read_bytes()) == header_len + 2 * SAMPLES
    assert ("24000" in (tmp_path / "options").read_text()) == (header_len == 0)


def test_the_first_player_is_taken(install):
    for name in ("pw-play", "aplay"):
        install(name, "")
    assert sinks.find_player() == "aplay"


def test_no_player(run, install):
    code, _, err = run(TEXT, terminal=True)
    assert code == 2 and "no player found: install one of ffplay, aplay, paplay, pw-play, or pipe" in last_line(err)
    install("afplay", "")
    with pytest.raises(UsageError, match="afplay cannot play what is still being made"):
        sinks.find_player()


def test_a_player_that_fails(run, install):
    install("aplay", "exit 3")
    code, _, err = run(TEXT, terminal=True)
    assert code == 1 and "aplay failed with exit code 3" in last_line(err) and no_thread_is_left()


def test_an_interrupted_player_is_ended(run, install, monkeypatch):
    install("aplay", "while :; do read x; done")  # goes on until it is ended

    def pcm(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "pcm", pcm)
    code, _, err = run(TEXT, terminal=True)
    assert code == 130 and last_line(err) == "chatterbox: error: interrupted" and no_thread_is_left()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["streaming.chunk_size=0"], "chunk_size must be a whole number of speech tokens from 1, got 0"),
        (["streaming=slow"], "streaming has no choice 'slow'; it has append, default"),
        (["streaming.continuity=none"], "continuity must be one of isolated, history, append, got 'none'"),
        (["-o", "absent/out.wav"], "cannot write 'absent/out.wav': its folder does not exist"),
        (["-o", "OUT.txt"], "the name must end in .wav, .flac, .ogg"),
        (["-o", "OUT.wav", "--wav"], "--wav is for standard output"),
        (["stray"], "unrecognised argument 'stray'; quote the text"),
        (["tempo=2"], "stream has no setting 'tempo'"),
    ],
)
def test_usage_errors(run, tmp_path, arguments, message):
    code, out, err = run(TEXT, *arguments)
    assert code == 2 and out == b"" and message in err and "Traceback" not in err
    assert files(tmp_path) == []


@pytest.mark.parametrize("arguments", [["-o", "-"], ["--wav"]])
def test_no_audio_for_a_terminal(run, arguments):
    code, _, err = run(TEXT, *arguments, terminal=True)
    assert code == 2 and "standard output is a terminal" in err


def test_append_needs_a_cache(run, tmp_path):
    code, _, err = run(TEXT, "-o", "OUT.wav", "streaming=append", "kvcache=none")
    assert code == 1 and 'continuity "append" needs a cache' in last_line(err) and files(tmp_path) == []


@pytest.mark.parametrize(("name", "arguments"), [("stdin", []), ("stdout", [TEXT])])
def test_closed_standard_files(run, monkeypatch, name, arguments):
    monkeypatch.setattr(sys, name, None)
    code, _, err = run(*arguments)
    assert code == 2 and re.search(r"standard (input|output) is closed", err)


def test_in_a_pipeline(small_folder):
    """As a program: its reader has enough after some samples and leaves; it ends quietly."""
    command = [sys.executable, "-m", "chatterbox.cli", "stream", "--model", str(small_folder), "--seed", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"Hello there. An")
    process.stdin.flush()
    assert len(process.stdout.read(100)) == 100  # before the text has ended
    process.stdout.close()
    process.stdin.write(b"d so on. " * 3)
    process.stdin.close()
    assert process.wait(60) == 0 and b"Traceback" not in process.stderr.read()
    process.stderr.close()
