"""What `say` and `stream` read and write: any word as a text, texts in files, every kind of place for audio."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import stat
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from chatterbox.cli import audio_files, folder, main, output, say, stream
from chatterbox.cli.text_argument import take_text
from chatterbox.runtime.files import left_overs, whole
from tests.support.attacks import open_folder, unprivileged
from tests.support.speaker import PER_CHARACTER, RATE, ToneSpeaker, tone

posix = pytest.mark.skipif(os.name != "posix", reason="modes, pipes and links of POSIX")
TEXT = "Hello there."
SAMPLES = PER_CHARACTER * len(TEXT)


@pytest.fixture
def speaker(monkeypatch) -> ToneSpeaker:
    one = ToneSpeaker()
    for module in (say, stream, folder):
        monkeypatch.setattr(module, "load_speaker", lambda *_: one)
    return one


@pytest.fixture
def run(speaker, capfdbinary, monkeypatch, tmp_path):
    """Runs the command in an empty folder: (exit code, standard output as bytes, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run_(*arguments: str) -> tuple[int, bytes, str]:
        try:
            code = main(list(arguments))
        except SystemExit as exit_:
            code = exit_.code
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run_


SPOKEN = [
    (["say", "-h", "-o", "x.wav"], "-h"),
    (["say", "-o", "x.wav", "--help"], "--help"),
    (["say", "--hello", "-o", "x.wav"], "--hello"),
    (["say", "--seed", "1", "--hello", "-o", "x.wav"], "--hello"),
    (["say", "-order now", "-o", "x.wav"], "-order now"),
    (["say", "-hello", "-o", "x.wav"], "-hello"),
    (["say", "-5", "-o", "x.wav"], "-5"),
    (["say", "-", "-o", "x.wav"], "-"),
    (["say", "seed=1", "-o", "x.wav"], "seed=1"),
    (["say", "a=b", "-o", "x.wav", "seed=1"], "a=b"),
    (["say", "seed=1", "Hello.", "-o", "x.wav"], "Hello."),
    (["say", "seed=1", "a=b", "--model=tiny", "-ox.wav"], "a=b"),
    (["say", "-o", "x.wav", "--", "--model"], "--model"),
    (["say", "-o", "x.wav", "seed=1", "--", "--"], "--"),
    (["say", "", "-o", "x.wav"], ""),
    (["say", "--mod", "tiny", "Hello.", "--out", "x.wav"], "Hello."),
    (["say", "seed=1 is what he said", "-o", "x.wav"], "seed=1 is what he said"),
    (["stream", "a=b", "-o", "x.wav"], "a=b"),
    (["stream", "a=b"], "a=b"),
    (["stream", "streaming.chunk_size=5", "a=b"], "a=b"),
    (["stream", "-h", "-o", "x.wav"], "-h"),
    (["stream", "--", "--hello"], "--hello"),
]


@pytest.mark.parametrize(("arguments", "text"), SPOKEN, ids=[" ".join(words) for words, _ in SPOKEN])
def test_any_word_is_spoken(run, speaker, arguments, text):
    code, _, err = run(*arguments)
    assert code == 0, err
    assert speaker.texts == [text]


@pytest.mark.parametrize("arguments", [["say", "-h"], ["say", "Hello.", "-h"], ["stream", "--help"], ["say", "--help"]])
def test_help_is_help_where_a_text_is_not_meant(run, speaker, arguments):
    code, out, _ = run(*arguments)
    assert code == 0 and out.startswith(b"usage: chatterbox") and speaker.texts == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["say", "Hello.", "--hello", "-o", "x.wav"], "unrecognised argument '--hello'"),
        (["say", "Hello.", "a=b", "-o", "x.wav"], "say has no setting 'a'"),
        (["say", "-o", "x.wav"], "the following arguments are required: TEXT, or --file FILE"),
        (["say", "--hello"], "the following arguments are required: -o/--output"),
        (["stream", "--hello"], "unrecognised argument '--hello'"),
        (["say", "Hello.", "--file", "x.txt", "-o", "x.wav"], "there is a text, 'Hello.', and --file x.txt"),
        (["say", "Hello.", "-o", "x.wav", "--force"], "--force is for a folder of texts"),
        (["say", "Hello.", "-o", "x.wav", "--format", "mp3"], "--format is for standard output and folders"),
        (["say", "Hello.", "-o", "-", "--format", "xyz"], "the name must end in .wav, .flac, .ogg"),
        (["say", "Hello.", "-o", "x.raw"], "cannot write 'x.raw': the name must end in .wav, .flac, .ogg"),
        (["say", "Hello.", "-o", "."], "cannot write '.': "),
        (["say", "Hello.", "-o", ""], "-o '' names no file"),
        (["say", "--file", "", "-o", "x.wav"], "--file '' names no file"),
        (["say", "Hello.", "-o", "-", "--format", ""], "--format '': the name must end in .wav"),
        (["say", "Hello.", "-o", "x.wav", "--force"], "one text is always spoken, leave it out"),
        (["say", "Hello.", "-o", "x.sd2"], "cannot write 'x.sd2': the name must end in .wav, .flac, .ogg"),
    ],
)
def test_usage_errors(run, speaker, tmp_path, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == b"" and message in err and "Traceback" not in err
    assert speaker.texts == [] and list(tmp_path.iterdir()) == []


def test_version(run):
    from chatterbox import __version__

    assert run("--version") == (0, f"chatterbox-kvcache {__version__}\n".encode(), "")


def test_a_text_is_found_whatever_stands_beside_it():
    parser = main.__globals__["_parser"]()[1]["say"]
    assert take_text(parser, ["-o", "-", "Hi", "--debug"], "say", may_lack=False) == ("Hi", ["-o", "-", "--debug"])
    assert take_text(parser, ["--file", "a", "-o", "b"], "say", may_lack=False) == (None, ["--file", "a", "-o", "b"])


class TestFiles:
    def test_a_text_from_a_file(self, run, speaker, tmp_path):
        (tmp_path / "story.txt").write_bytes("\ufeffGrüße.\n".encode())
        assert run("say", "--file", "story.txt", "-o", "x.wav", "seed=1")[0] == 0 and speaker.texts == ["Grüße.\n"]
        assert run("say", "-f", "story.txt", "-o", "x.wav")[0] == 0

    def test_a_text_from_standard_input(self, run, speaker, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello.")))
        assert run("say", "--file", "-", "-o", "x.wav")[0] == 0 and speaker.texts == ["Hello."]

    def test_files_that_are_no_text(self, run, speaker, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"Hello \xff.")
        code, _, err = run("say", "-f", "a.txt", "-o", "x.wav")
        assert code == 1 and "a.txt is not UTF-8: byte 0xff at 6; convert it with iconv" in err
        code, _, err = run("say", "-f", "b.txt", "-o", "x.wav")
        assert code == 1 and "text file 'b.txt' does not exist" in err and speaker.texts == []

    @pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n\t\n"])
    def test_files_without_a_word(self, run, speaker, tmp_path, monkeypatch, content):
        (tmp_path / "a.txt").write_bytes(content)
        code, _, err = run("say", "-f", "a.txt", "-o", "x.wav")
        assert (code, err) == (1, "chatterbox: error: a.txt holds no text; give one with words\n")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert "standard input holds no text" in run("say", "-f", "-", "-o", "x.wav")[2]
        assert speaker.texts == [] and not (tmp_path / "x.wav").exists()

    @posix
    def test_a_file_that_fails_while_it_is_read_is_named(self, run):
        code, _, err = run("say", "-f", "/proc/self/mem", "-o", "x.wav")
        assert code == 1 and err.startswith("chatterbox: error: text file '/proc/self/mem' ") and err.count("\n") == 1


class TestFolders:
    @pytest.fixture
    def texts(self, tmp_path):
        (tmp_path / "texts").mkdir()
        for name, text in (("b.txt", "Two."), ("a.txt", "One."), ("c.txt", "Three."), ("notes.md", "no")):
            (tmp_path / "texts" / name).write_text(text)
        return tmp_path / "texts"

    def test_each_text_becomes_a_file(self, run, speaker, texts, tmp_path):
        code, out, err = run("say", "--file", "texts", "-o", "audio", "--format", "flac")
        assert code == 0 and speaker.texts == ["One.", "Two.", "Three."], err
        lines = out.decode().splitlines()
        assert lines[0] == f"{os.path.join('audio', 'a.flac')}: 0.04 s of audio"
        assert lines[3:] == ["audio: 3 of 3 texts spoken, 0 failed"]
        assert soundfile.info(tmp_path / "audio" / "c.flac").frames == 6 * PER_CHARACTER
        assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == ["a.flac", "b.flac", "c.flac"]

    def test_it_goes_on_where_it_stopped(self, run, speaker, texts, tmp_path):
        def interrupt(text):
            if text == "Two.":
                os.kill(os.getpid(), signal.SIGINT)

        speaker._on_text = interrupt
        assert run("say", "-f", "texts", "-o", "audio")[0] == 130
        assert [path.name for path in (tmp_path / "audio").iterdir()] == ["a.wav"]
        speaker._on_text, speaker.texts[:] = print, []
        code, out, _ = run("say", "-f", "texts", "-o", "audio")
        assert code == 0 and speaker.texts == ["Two.", "Three."]
        assert b"audio: 2 of 3 texts spoken, 1 were there (--force says them again), 0 failed" in out
        os.utime(texts / "a.txt", (2**33, 2**33))  # a text that was changed is said again
        speaker.texts.clear()
        assert run("say", "-f", "texts", "-o", "audio")[0] == 0 and speaker.texts == ["One."]
        assert run("say", "-f", "texts", "-o", "audio", "--force")[0] == 0 and len(speaker.texts) == 4

    def test_one_that_fails_is_named_and_the_others_are_spoken(self, run, speaker, texts):
        (texts / "b.txt").write_bytes(b"\xff")
        code, out, err = run("say", "-f", "texts", "-o", "audio")
        assert code == 1 and speaker.texts == ["One.", "Three."] and b"2 of 3 texts spoken, 1 failed" in out
        assert err.startswith("chatterbox: error: texts") and "b.txt is not UTF-8" in err and err.count("\n") == 1
        assert err.count("b.txt") == 1

    def test_two_texts_of_one_name_are_refused_before_anything_is_said(self, run, speaker, texts, tmp_path):
        (texts / "a.TXT").write_text("Other.")
        if len(list(texts.glob("a.*"))) < 2:
            pytest.skip("a folder that does not tell them apart")
        code, _, err = run("say", "-f", "texts", "-o", "audio")
        message = f"'a.TXT' and 'a.txt' would both be {os.path.join('audio', 'a.wav')!r}; rename one of them"
        assert code == 2 and message in err and speaker.texts == [] and not (tmp_path / "audio").exists()

    @posix
    def test_folders_pipes_and_hidden_files_are_no_texts_and_a_link_to_nothing_fails(self, run, speaker, texts):
        (texts / "d.txt").mkdir()
        os.mkfifo(texts / "e.txt")
        (texts / "._a.txt").write_bytes(b"\x00\xff")  # as macOS leaves beside a.txt on other disks
        (texts / "f.txt").symlink_to("nowhere")
        (texts / "g.txt").symlink_to("a.txt")
        code, out, err = run("say", "-f", "texts", "-o", "audio")
        assert code == 1 and speaker.texts == ["One.", "Two.", "Three.", "One."] and b"4 of 5 texts spoken" in out
        assert err == "chatterbox: error: text file 'texts/f.txt' does not exist\n"

    def test_a_text_that_is_changed_while_it_is_spoken_is_said_again(self, run, speaker, texts):
        def change(text):
            if text == "One.":
                (texts / "a.txt").write_text("One more.")
                os.utime(texts / "a.txt", (later := time.time() + 0.01, later))

        speaker._on_text = change
        assert run("say", "-f", "texts", "-o", "audio")[0] == 0
        time.sleep(0.02)
        speaker.texts.clear()
        assert run("say", "-f", "texts", "-o", "audio")[0] == 0 and speaker.texts == ["One more."]
        assert b"0 of 3 texts spoken, 3 were there" in run("say", "-f", "texts", "-o", "audio")[1]

    @pytest.mark.parametrize("file", [["-f", "texts", "-o", "audio"], [TEXT, "-o", "x.wav"]])
    def test_nobody_who_reads_what_was_made(self, run, speaker, texts, monkeypatch, file):
        reads, writes = os.pipe()
        os.close(reads)
        with contextlib.closing(io.TextIOWrapper(os.fdopen(writes, "wb", 0), "utf-8", write_through=True)) as broken:
            monkeypatch.setattr(sys, "stdout", broken)
            assert run("say", *file)[0] == 0 and len(speaker.texts) == (3 if file[0] == "-f" else 1)

    def test_nothing_to_do(self, run, speaker, texts, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "folder 'empty' holds no .txt file" in run("say", "-f", "empty", "-o", "audio")[2]
        assert "must be one too" in run("say", "-f", "texts", "-o", "-")[2]
        (tmp_path / "x.wav").write_text("mine")
        assert "must be one too" in run("say", "-f", "texts", "-o", "x.wav")[2] and speaker.texts == []


def samples_of(content: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == RATE
    return samples


KINDS = {"wav": 1e-4, "flac": 1e-4, "ogg": 0.05, "opus": 0.1, "mp3": 0.1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["say", "stream"])
def test_kinds_of_files(run, tmp_path, kind, command):
    text = "Long enough for every encoder. " * 20
    assert run(command, text, "-o", f"x.{kind}")[0] == 0
    heard = samples_of((tmp_path / f"x.{kind}").read_bytes())
    expected = tone(PER_CHARACTER * len(text))
    assert abs(len(heard) - len(expected)) <= 2400 * (kind == "mp3")
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(expected**2)), rel=max(KINDS[kind], 0.01))
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{kind}"]


def test_kinds_that_the_library_lacks(run, monkeypatch):
    known = soundfile.check_format
    monkeypatch.setattr(soundfile, "check_format", lambda form, sub=None: form != "MP3" and known(form, sub))
    code, _, err = run("say", TEXT, "-o", "x.mp3")
    assert code == 2 and "cannot write 'x.mp3': libsndfile" in err and ".wav, .flac, .ogg, .opus or another" in err


def test_a_name_that_the_terminals_letters_lack(run, tmp_path, monkeypatch):
    ascii_alone = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", ascii_alone)
    assert run("say", TEXT, "-o", "日本.wav")[0] == 0 and (tmp_path / "日本.wav").exists()
    assert ascii_alone.buffer.getvalue().startswith(b"\\u65e5\\u672c.wav: 0.12 s of audio")


def test_standard_output(run):
    code, out, err = run("say", TEXT, "-o", "-")
    assert code == 0 and len(samples_of(out)) == SAMPLES and err.startswith("standard output: 0.12 s of audio")
    assert run("say", TEXT, "-o", "-", "--format", "flac")[1][:4] == b"fLaC"


def test_standard_output_that_cannot_take_it(run, speaker, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert "standard output is closed" in run("say", TEXT, "-o", "-")[2]
    _, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert "standard output is a terminal" in run("say", TEXT, "-o", "-")[2] and speaker.texts == []
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writes, isatty=lambda: False))
    assert run("say", TEXT, "-o", "-")[0] == 0  # its reader had enough


@posix
@pytest.mark.parametrize("command", ["say", "stream"])
@pytest.mark.parametrize("name", ["pipe", "pipe.wav", "pipe.ogg"])
def test_a_pipe_is_written_through(run, tmp_path, command, name):
    os.mkfifo(tmp_path / name)
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / name).read_bytes()), daemon=True)
    reader.start()
    assert run(command, TEXT, "-o", name)[0] == 0
    reader.join(30)
    assert abs(len(samples_of(heard[0])) - SAMPLES) <= 0 and (b"OggS" in heard[0]) == name.endswith("ogg")
    assert stat.S_ISFIFO((tmp_path / name).stat().st_mode) and [one.name for one in tmp_path.iterdir()] == [name]


@posix
@pytest.mark.parametrize("command", ["say", "stream"])
def test_a_device_stays_one(run, tmp_path, command):
    (tmp_path / "null.flac").symlink_to(os.devnull)
    for path in (os.devnull, "null.flac"):
        assert run(command, TEXT, "-o", path)[0] == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and (tmp_path / "null.flac").is_symlink()


@posix
@pytest.mark.parametrize("command", ["say", "stream"])
@pytest.mark.parametrize("name", ["x.wav", "x.mp3"])
def test_a_disk_that_is_full_is_one_line_with_the_name(run, tmp_path, command, name):
    resource = pytest.importorskip("resource")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        code, _, err = run(command, TEXT * 20, "-o", name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1 and err.startswith(f"chatterbox: error: cannot write '{name}': ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("command", [["say"], ["stream", "--wav"]])
def test_a_device_and_an_output_that_are_full(run, monkeypatch, command):
    assert "cannot write '/dev/full': No space left on device" in run(*command[:1], TEXT, "-o", "/dev/full")[2]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = run(*command, TEXT, "-o", "-")
    assert (code, err) == (1, "chatterbox: error: cannot write to standard output: No space left on device\n")


@posix
@pytest.mark.parametrize("command", ["say", "stream"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_points_at_is_written(run, tmp_path, command, is_there):
    (tmp_path / "music").mkdir()
    target = tmp_path / "music" / "x.wav"
    if is_there:
        target.write_text("before")
    (tmp_path / "x.wav").symlink_to(target)
    assert run(command, TEXT, "-o", "x.wav")[0] == 0
    assert (tmp_path / "x.wav").is_symlink() and soundfile.info(target).frames == SAMPLES
    assert [path.name for path in target.parent.iterdir()] == ["x.wav"]


@posix
@pytest.mark.parametrize("command", ["say", "stream"])
def test_a_name_that_is_no_utf_8(run, tmp_path, command):
    name = os.fsdecode(b"b\xff.wav")
    try:
        (tmp_path / name).write_text("before")
    except OSError:
        pytest.skip("a disk whose names are UTF-8")
    code, out, err = run(command, TEXT, "-o", name)
    assert code == 0 and (out + err.encode()).startswith(b"b\\udcff.wav: ")
    assert len(samples_of((tmp_path / name).read_bytes())) == SAMPLES


@posix
def test_a_files_mode_is_kept(run, tmp_path):
    path = tmp_path / "x.wav"
    for mode in (0o600, 0o664):
        path.write_text("before")
        path.chmod(mode)
        assert run("say", TEXT, "-o", "x.wav")[0] == 0 and stat.S_IMODE(path.stat().st_mode) == mode
        assert soundfile.info(path).frames == SAMPLES
    before = os.umask(0o027)
    try:
        assert run("say", TEXT, "-o", "new.wav")[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.wav").stat().st_mode) == 0o640


@posix
def test_a_file_under_way_is_its_owners_alone(tmp_path):
    path = tmp_path / "x.wav"
    path.write_text("before")
    path.chmod(0o600)
    with whole(path) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600 and len(part.name) > len("x.wav") + 16
        part.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


@posix
def test_a_link_planted_at_the_temporary_name_is_not_followed(run, tmp_path, monkeypatch):
    tokens = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(tokens))
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".x.wav.{'0' * 16}.part").symlink_to(tmp_path / "victim")
    assert run("say", TEXT, "-o", "x.wav")[0] == 0
    assert (tmp_path / "victim").read_text() == "mine" and soundfile.info(tmp_path / "x.wav").frames == SAMPLES


@posix
def test_what_may_only_be_read_is_refused_before_anything_is_said(run, speaker):
    with open_folder() as place:
        (place / "x.wav").write_text("mine")
        (place / "x.wav").chmod(0o444)
        with unprivileged():
            assert f"cannot write '{place}/x.wav': it may only be read" in run("say", TEXT, "-o", f"{place}/x.wav")[2]
            assert "its folder may only be read" in run("say", TEXT, "-o", f"{place}/y.wav")[2]
    assert speaker.texts == []


@posix
def test_left_overs_of_killed_writers_are_swept(run, tmp_path):
    left = [".x.wav.0123456789abcdef.part", ".x.wav.4711.part"]  # of this version, and of an earlier one
    for name in (*left, ".y.wav.0123456789abcdef.part", "x.wav.part"):
        (tmp_path / name).write_bytes(b"half")
    with whole(tmp_path / "x.wav") as part:
        assert list(left_overs(tmp_path, ".part", "x.wav")) == [part]  # that of a living writer stays
        assert run("say", TEXT, "-o", "x.wav")[0] == 0 and part.exists()
        part.write_bytes(b"later")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".y.wav.0123456789abcdef.part", "x.wav", "x.wav.part"]


def test_long_names(run, tmp_path):
    name = "x" * 251 + ".wav"
    assert run("say", TEXT, "-o", name)[0] == 0 and [path.name for path in tmp_path.iterdir()] == [name]


class TestTerminals:
    def test_escape_codes_are_shown_as_text(self, run):
        assert output.table([["\033[2Jgo", "né\u3000\u202eab"], ["a\nb", "c"]]) == [
            "\\x1b[2Jgo  né\u3000\\u202eab",
            "a\\nb       c",
        ]
        _, _, err = run("say", TEXT, "-o", "no\033[2J/x.wav")
        assert "\\x1b[2J" in err and "\033" not in err

    def test_standard_error_that_nobody_reads(self, run, monkeypatch, tmp_path):
        class Gone(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        for stderr in (None, Gone()):
            monkeypatch.setattr(sys, "stderr", stderr)
            with output.warnings_shown():
                logging.getLogger("chatterbox").warning("to nobody")
            code, out, _ = run("stream", TEXT)
            assert code == 0 and len(out) == 2 * SAMPLES

    def test_a_signal_that_is_ignored_stays_so(self, run, speaker):
        speaker._on_text = lambda text: os.kill(os.getpid(), signal.SIGHUP)
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        try:
            assert run("say", TEXT, "-o", "x.wav")[0] == 0
        finally:
            signal.signal(signal.SIGHUP, before)
        assert run("say", TEXT, "-o", "x.wav")[0] == 128 + signal.SIGHUP

    @pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals_while_a_file_is_written(self, run, monkeypatch, tmp_path, kind):
        (tmp_path / "x.wav").write_text("before")
        write = audio_files._encode

        def interrupted(*arguments: object) -> None:
            write(*arguments)
            with contextlib.suppress(OSError):
                os.kill(os.getpid(), kind)

        monkeypatch.setattr(audio_files, "_encode", interrupted)
        assert run("say", TEXT, "-o", "x.wav")[::2] == (128 + kind, "chatterbox: error: interrupted\n")
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"] and (tmp_path / "x.wav").read_text() == "before"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
@pytest.mark.parametrize("command", ["say", "stream"])
def test_a_name_that_is_no_unicode(run, tmp_path, command):
    code, out, err = run(command, "Hello.", "-o", "a\udcff\n\033.wav")
    assert code == 0 and soundfile.info(os.fsencode(tmp_path / "a\udcff\n\033.wav")).frames
    assert "a\\udcff\\n\\x1b.wav: " in (out.decode() if command == "say" else err)


@posix
def test_a_mount_of_its_own_is_written_in_place(run, tmp_path, monkeypatch):
    """As `docker run -v x.wav:/x.wav` makes one; it cannot be replaced."""
    path = tmp_path / "x.wav"
    path.write_text("before")
    before = path.stat().st_ino

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    assert run("say", TEXT, "-o", "x.wav")[0] == 0
    assert path.stat().st_ino == before and soundfile.info(path).frames == SAMPLES
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="a device of POSIX")
def test_a_text_without_an_end(run, speaker):
    code, _, err = run("say", "--file", "/dev/zero", "-o", "x.wav")
    assert (code, speaker.texts) == (1, []) and "/dev/zero has more than 16 MiB of text; say it in parts" in err
