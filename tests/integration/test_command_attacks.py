"""The command as a process, against what shells, users and signals do to it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file, save_file

from chatterbox.cli import main
from chatterbox.voice import library
from chatterbox.voice.conditionals import Conditionals
from chatterbox.voice.library import VoiceLibrary, find_voice
from tests.support.attacks import ROOT, killed
from tests.support.command import command

LASTS = 120  # seconds that a process may take
OF_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS"}  # that its children inherit
pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells, pipes and signals of POSIX")

# The command, whose model is a tone.
PROGRAM = """
import os, sys, signal
from chatterbox.cli import audio_files, main, say, stream
from tests.support.speaker import ToneSpeaker
say.load_speaker = stream.load_speaker = lambda *_: ToneSpeaker(lambda text: {on_text})
{more}
sys.exit(main())
"""


def process(*arguments: str, on_text: str = "None", more: str = "", shell: str = "", **options) -> subprocess.Popen:
    program = PROGRAM.format(on_text=on_text, more=more)
    words = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    return subprocess.Popen(words, **{**pipes, **options})


def test_an_interrupt_while_the_command_is_imported_is_one_line():
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'chatterbox.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import chatterbox.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=LASTS)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"chatterbox: error: interrupted\n")


@pytest.mark.parametrize("arguments", [["say", "Hello.", "-o", "-"], ["stream", "Hello.", "--wav"]])
def test_standard_error_closed(arguments, tmp_path):
    """Not a byte of what is said about the audio gets into it, and no other file has its number."""
    alone = process(*arguments)
    expected, about = alone.communicate(timeout=LASTS)
    closed = process(*arguments, shell="2>&-", more="import logging; logging.getLogger('chatterbox').warning('words')")
    out, err = closed.communicate(timeout=LASTS)
    assert (alone.returncode, closed.returncode) == (0, 0) and out == expected and len(out) > 100
    assert b"s of audio" in about and err == b""


def test_an_error_with_standard_error_closed_is_told_by_the_exit_code():
    one = process("stream", "Hello.", "--model", "x", shell="2>&-", more="stream.load_speaker = lambda *_: 1 / 0")
    assert one.communicate(timeout=LASTS) == (b"", b"") and one.returncode == 1


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing(tmp_path, kind):
    (tmp_path / "x.wav").write_text("before")
    more = (
        "write = audio_files._encode; audio_files._encode = lambda *a: (write(*a), print(flush=True), signal.pause())"
    )
    one = process("say", "Hello.", "-o", str(tmp_path / "x.wav"), more=more)
    assert one.stdout.readline() == b"\n" and len(list(tmp_path.iterdir())) == 2  # half way through
    one.send_signal(kind)
    assert one.communicate(timeout=LASTS)[1] == b"chatterbox: error: interrupted\n"
    assert one.returncode == 128 + kind
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"] and (tmp_path / "x.wav").read_text() == "before"


MOMENTS = {"before": "lambda *a: die()", "amid": "lambda f, s, r, k: (write(f, s[:100], r, k), die())"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path, moment):
    path = tmp_path / "x.wav"
    more = f"write = audio_files._encode; audio_files._encode = {MOMENTS[moment]}; sys.argv[1:] = {['say', 'Hello.']!r}"
    killed(PROGRAM.format(on_text="None", more=f"{more} + ['-o', {str(path)!r}]"))
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".part"
    one = process("say", "Hello.", "-o", str(path))
    one.communicate(timeout=LASTS)
    assert one.returncode == 0 and soundfile.info(path).frames and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    ["$(shell touch PLANTED)", "`touch PLANTED`", "$(touch PLANTED)", "\"; touch PLANTED; '", "$$5 & #1 %s \\n", "-h"],
)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_make_says_a_text_as_it_stands(tmp_path, text, way):
    """Through a command that prints its words, in place of the environment's."""
    planted = tmp_path / "planted"
    text = text.replace("PLANTED", str(planted)) + "\nand another line"
    program = tmp_path / "bin" / "chatterbox"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".ready").touch()
    os.utime(tmp_path / ".ready", (2**33, 2**33))
    given = {"argument": [f"TEXT={text}"], "environment": []}[way]
    own = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    environment = own | ({"TEXT": text} if way == "environment" else {})
    words = ["make", "-s", "-C", str(ROOT), "say", f"VENV={tmp_path}", "OUT=-$(shell touch x).wav", *given]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=LASTS)
    assert done.returncode == 0 and done.stdout == f"say|--output=-$(shell touch x).wav|--|{text}|", done.stderr
    assert not planted.exists() and not (ROOT / "x").exists()


def malformed(path: Path) -> dict[str, object]:
    """What may lie under a voice's name, as functions that put it there."""
    tensors = load_file(path)

    def odd(**others: object) -> None:
        save_file({**tensors, **others}, str(path))

    frames = tensors["gen.prompt_feat"]
    return {
        "one dimension": lambda: odd(**{"gen.prompt_feat": frames.flatten()}),
        "no dimension": lambda: odd(**{"gen.prompt_feat": frames.sum()}),
        "empty": lambda: path.write_bytes(b""),
        "no header": lambda: path.write_bytes(b"\xff" * 100),
        "a list as header": lambda: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
        "text": lambda: path.write_text("hello"),
        "a pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "a link to nothing": lambda: (path.unlink(), path.symlink_to("nothing")),
    }


@pytest.fixture(scope="module")
def voices(small_folder, reference_wav, tmp_path_factory) -> Path:
    """A folder with one voice. Read only."""
    folder = tmp_path_factory.mktemp("voices")
    words = ["voices", "--folder", str(folder), "add", "anna", str(reference_wav), "--model", str(small_folder)]
    assert main(words) == 0
    return folder


KINDS = (
    "one dimension", "no dimension", "empty", "no header", "a list as header", "text", "a pipe", "a link to nothing",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_malformed_voice_fails_nothing_else(voices, tmp_path, capsys, kind):
    folder, run = Path(shutil.copytree(voices, tmp_path / "voices")), command(capsys, "voices", "--folder")
    bad = folder / "bad.safetensors"
    shutil.copy(folder / "anna.safetensors", bad)
    malformed(bad)[kind]()
    code, out, err = run(str(folder), "list")
    assert (code, err) == (0, "") and "bad       broken: remove it" in out and out.splitlines()[2].startswith("anna")
    code, out, err = run(str(folder), "show", "bad")
    assert code == 1 and "is no whole voice" in err and err.count("\n") == 1
    anna = Conditionals.load(folder / "anna.safetensors")
    assert VoiceLibrary(folder).add("bad", anna, {}, force=True).is_file() and run(str(folder), "show", "bad")[0] == 0
    assert run(str(folder), "remove", "bad")[0] == 0 and VoiceLibrary(folder).names() == ["anna"]


def test_a_folder_is_no_voice(voices, tmp_path):
    folder = Path(shutil.copytree(voices, tmp_path / "voices"))
    (folder / "bad.safetensors").mkdir()
    assert VoiceLibrary(folder).names() == ["anna"]


def test_escape_codes_in_a_description_are_text(voices, tmp_path, capsys):
    folder = Path(shutil.copytree(voices, tmp_path / "voices"))
    path = folder / "anna.safetensors"
    save_file(load_file(path), str(path), metadata={"model": "\033[2J\033]0;mine\007", "recording": "a\nb\u202ec"})
    for action in (["list"], ["show", "anna"]):
        _, out, _ = command(capsys, "voices", "--folder")(str(folder), *action)
        assert "\\x1b[2J\\x1b]0;mine\\x07" in out and "a\\nb\\u202ec" in out
        assert not set(out) & {"\033", "\007", "\u202e"}


def test_no_home(monkeypatch, capsys, reference_wav):
    """No HOME and no entry of the user: everything but voices by name works."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(library.Path, "home", nobody)
    run = command(capsys)
    assert find_voice(str(reference_wav)) == reference_wav
    with pytest.raises(FileNotFoundError, match="give a recording, or a name: built-in"):
        find_voice("anna")
    assert run("voices", "list")[::2] == (
        2,
        "chatterbox: error: this user has no home folder: set HOME or XDG_DATA_HOME, or give --folder\n",
    )
    assert run("voices", "-h")[0] == run("config")[0] == 0


def test_a_user_that_the_system_does_not_know_is_spoken_to(small_folder, tmp_path):
    """A real model, in a process whose user has no entry and no HOME."""
    program = (
        "import os, pwd, sys\nfor name in ('HOME', 'XDG_DATA_HOME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
        "def nobody(_): raise KeyError('uid not found')\npwd.getpwuid = nobody\n"
        "from chatterbox.cli import main\nsys.exit(main())"
    )
    words = ["say", "Hello.", "-o", str(tmp_path / "x.wav"), "--model", str(small_folder)]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and soundfile.info(tmp_path / "x.wav").frames, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


def test_no_words_of_a_text_in_the_logs(small_tts, caplog):
    """Whatever the model does with it: random weights never end an utterance."""
    secret = "Xylophone zeppelins quietly juggle. " * 12
    with caplog.at_level("INFO"):
        small_tts.generate(secret)
        for _ in small_tts.generate_stream(secret):
            pass
    said = [record.getMessage().lower() for record in caplog.records]
    assert any("was cut off at max_new_tokens" in message for message in said)
    assert not any(word in message for message in said for word in ("xylophone", "zeppelin", "quietly", "juggle"))


def test_cache_files_are_their_owners_alone(tmp_path):
    import torch

    from chatterbox.kvcache import Segment
    from chatterbox.kvcache.prefix.disk import DiskTier

    disk, part = DiskTier(tmp_path), torch.ones(1, 1, 2, 4)
    assert disk.store("key", Segment(part, -part, 0))
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]


def test_a_cache_folder_that_is_none_costs_one_line(small_folder, tmp_path, capsys):
    words = ["Hello.", "--model", str(small_folder), "--seed", "1", "sampling.max_new_tokens=4", "-o"]
    for name, setting in (("a.wav", []), ("b.wav", [f"kvcache.disk_folder={os.devnull}"])):
        code, _, err = command(capsys, "say")(*words, str(tmp_path / name), *setting)
        assert code == 0 and err.count("prefix cache: cannot write to /dev/null") == len(setting), err
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("arguments", ["say Hello. -o x.wav", "voices --folder . list", "config"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_what_is_printed(arguments, unbuffered, tmp_path):
    """As in `chatterbox say ... | true`: what was asked for is done."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    one = process(*arguments.split(), stdout=write, cwd=tmp_path, env=environment)
    os.close(write)
    assert (one.communicate(timeout=LASTS)[1], one.returncode) == (b"", 0)
    assert arguments[0] != "s" or soundfile.info(tmp_path / "x.wav").frames


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_is_full(unbuffered, tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        one = process("say", "Hello.", "-o", str(tmp_path / "x.wav"), stdout=full, env=environment)
    assert one.communicate(timeout=LASTS)[1] == b"chatterbox: error: [Errno 28] No space left on device\n"
    assert one.returncode == 1 and soundfile.info(tmp_path / "x.wav").frames


@pytest.mark.parametrize("command", ["say", "stream"])
def test_the_reader_of_a_named_pipe_has_enough(command, tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    one = process(command, "Hello there. " * 900, "-o", str(tmp_path / "x.wav"))
    with open(tmp_path / "x.wav", "rb") as pipe:
        assert pipe.read(4) == b"RIFF"
    assert one.communicate(timeout=LASTS) == (b"", b"") and one.returncode == 0


def test_an_interrupt_before_there_is_a_command():
    """Imports take a while."""
    program = (
        "import sys\nfrom importlib.abc import MetaPathFinder\nclass Interrupts(MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n        if name == 'chatterbox.cli.bench': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\nfrom chatterbox.cli import main\nsys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=LASTS)
    assert (done.returncode, done.stderr) == (130, "chatterbox: error: interrupted\n")


@pytest.mark.parametrize("target", ["memory", "soak", "quality", "bench-kvcache", "bench-peer", "bench-streams"])
def test_what_a_user_measures_goes_where_git_does_not_look(target):
    """Committed results change when asked: a test compares docs/benchmarks.md with them."""

    def folders(*words: str) -> set[str]:
        done = subprocess.run(["make", "-n", "-C", str(ROOT), target, *words], capture_output=True, text=True)
        return {os.path.dirname(file) for file in re.findall(r"\s-o\s+(\S+)", done.stdout)}

    assert folders() == {"build/results"} and folders("RESULTS=benchmarks/results") == {"benchmarks/results"}
    assert "build/" in (ROOT / ".gitignore").read_text().splitlines()
