"""``chatterbox voices``: a recording becomes a name, and the name speaks."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
import soundfile
from safetensors import safe_open

from chatterbox.cli import main
from chatterbox.voice.conditionals import Conditionals
from chatterbox.voice.library import FORMAT, VoiceLibrary, default_folder
from tests.support.command import command
from tests.support.folders import recording


@pytest.fixture
def library(tmp_path, monkeypatch) -> VoiceLibrary:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_folder() == tmp_path / "data" / "chatterbox" / "voices"
    return VoiceLibrary(default_folder())


@pytest.fixture
def run(small_folder, capsys, library):
    """Runs ``chatterbox …``: (exit code, standard output, standard error)."""
    return command(capsys)


@pytest.fixture
def anna(run, library, small_folder, reference_wav) -> VoiceLibrary:
    """A library with one voice of the small model."""
    code, out, _ = run("voices", "add", "anna", str(reference_wav), "--model", str(small_folder))
    assert code == 0 and out.startswith("anna: ") and str(library.folder / "anna.safetensors") in out
    return library


def said(run, folder, path, *options) -> bytes:
    command = ["say", "Hello.", "-o", str(path), "--model", str(folder), "--seed", "1", *options]
    code, _, err = run(*command)
    assert code == 0, err
    return path.read_bytes()


def test_a_named_voice_sounds_as_its_recording(run, anna, small_folder, tmp_path, reference_wav, monkeypatch):
    by_file = said(run, small_folder, tmp_path / "a.wav", "--voice", str(reference_wav))
    monkeypatch.setattr(
        "chatterbox.voice.conditionals.prepare_conditionals", lambda *_, **__: pytest.fail("listened again")
    )
    assert said(run, small_folder, tmp_path / "b.wav", "--voice", "anna") == by_file
    assert said(run, small_folder, tmp_path / "c.wav", "voice=anna") == by_file
    assert said(run, small_folder, tmp_path / "d.wav", "--voice", str(anna.folder / "anna.safetensors")) == by_file
    built_in = said(run, small_folder, tmp_path / "e.wav", "--voice", "built-in")
    assert said(run, small_folder, tmp_path / "f.wav") == built_in != by_file


def test_what_conditionals_save_is_a_voice(run, library, anna, small_folder, tmp_path):
    Conditionals.load(anna.path("anna")).save(tmp_path / "anna.pt")
    by_name = said(run, small_folder, tmp_path / "a.wav", "--voice", "anna")
    assert said(run, small_folder, tmp_path / "b.wav", "--voice", str(tmp_path / "anna.pt")) == by_name


def test_list_and_show(run, anna, reference_wav, small_folder):
    for arguments in (["voices"], ["voices", "list"], ["voices", "--folder", str(anna.folder)]):
        code, out, _ = run(*arguments)
        assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["name", "built-in", "anna"]
        assert out.splitlines()[2].split()[1:] == [str(small_folder), "2.0", "s", *out.split()[-3:]]
        assert out.endswith(f"KiB  {reference_wav.name}\n")
    code, out, _ = run("voices", "show", "anna")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (
        shown.keys() == {"name", "model", "recording", "family", "heard", "size", "file"} and shown["heard"] == "2.0 s"
    )
    code, out, _ = run("voices", "show", "built-in")
    assert code == 0 and out.startswith("built-in: ")


def test_a_name_is_replaced_by_force_alone(run, anna, small_folder, tmp_path):
    soundfile.write(tmp_path / "other.wav", recording(3.0, pitch=90.0), 24_000)
    add = ["voices", "add", "anna", str(tmp_path / "other.wav"), "--model", str(small_folder)]
    before = anna.path("anna").read_bytes()
    code, _, err = run(*add)
    assert code == 2 and "there is a voice 'anna' already" in err and anna.path("anna").read_bytes() == before
    assert run(*add, "--force")[0] == 0 and anna.path("anna").read_bytes() != before
    assert [path.name for path in anna.folder.iterdir()] == ["anna.safetensors"]


def test_remove(run, anna):
    assert run("voices", "remove", "anna")[0] == 0 and anna.names() == []
    code, _, err = run("voices", "remove", "anna")
    assert code == 2 and "no voice 'anna' in" in err and "none was added yet" in err
    assert run("voices", "remove", "built-in")[0] == 2


def test_a_voice_of_another_model_is_refused(run, anna, turbo_folder, tmp_path):
    code, _, err = run("say", "Hi.", "-o", str(tmp_path / "a.wav"), "--model", str(turbo_folder), "--voice", "anna")
    assert code == 2 and "voice 'anna' does not fit this model (it was made for" in err
    assert not (tmp_path / "a.wav").exists()


def test_turbos_voices_need_five_seconds(run, library, turbo_folder, reference_wav):
    code, _, err = run("voices", "add", "short", str(reference_wav), "--model", str(turbo_folder))
    assert code == 1 and "recording of the new voice is 2.0 s long; this model needs more than 5 s" in err
    assert library.names() == []


def test_a_multilingual_voice_needs_no_language(run, library, mtl_folder, reference_wav):
    assert run("voices", "add", "anna", str(reference_wav), "--model", str(mtl_folder))[0] == 0
    assert library.names() == ["anna"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", "a/b", "x.wav"], 2, "a voice cannot be called 'a/b'"),
        (["add", "built-in", "x.wav"], 2, "a voice cannot be called 'built-in'"),
        (["add", "bob", "absent.wav"], 1, "recording 'absent.wav' does not exist"),
        (["add", "bob", __file__], 1, "cannot be read as audio"),
        (["show", "bob"], 2, "no voice 'bob' in"),
        (["show", "bob", "extra"], 2, "unrecognised argument 'extra'"),
        (["add", "bob", __file__, "model.size=1"], 2, "model has no setting 'size'; it has source, device"),
        (["sing"], 2, "invalid choice: 'sing'"),
    ],
)
def test_errors_are_one_line(run, library, small_folder, arguments, code, message):
    model = ["--model", str(small_folder)] if arguments[0] == "add" else []
    result, out, err = run("voices", *arguments, *model)
    assert result == code and out == "" and message in err and "Traceback" not in err
    assert not library.folder.exists()


def test_a_name_that_nobody_has(run, anna, small_folder, tmp_path):
    code, _, err = run("say", "Hi.", "-o", str(tmp_path / "a.wav"), "--model", str(small_folder), "--voice", "bob")
    assert code == 1 and "voice 'bob' does not exist: give a recording, or a name: built-in, anna" in err


def test_a_broken_file_is_named_and_can_be_removed(run, anna, small_folder, tmp_path):
    anna.path("anna").write_bytes(anna.path("anna").read_bytes()[:100])
    code, out, _ = run("voices")
    assert code == 0 and "broken" in out
    code, _, err = run("say", "Hi.", "-o", str(tmp_path / "a.wav"), "--model", str(small_folder), "--voice", "anna")
    assert code == 1 and "is no whole voice" in err and err.count("\n") == 1
    assert run("voices", "remove", "anna")[0] == 0


def test_a_failed_write_leaves_what_was_there(run, anna, small_folder, reference_wav, monkeypatch):
    before = anna.path("anna").read_bytes()

    def broken(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    code, _, err = run("voices", "add", "anna", str(reference_wav), "--model", str(small_folder), "--force")
    assert code == 1 and "no space left" in err and anna.path("anna").read_bytes() == before
    assert [path.name for path in anna.folder.iterdir()] == ["anna.safetensors"]


def test_options_may_stand_before_the_action(run, anna, tmp_path):
    assert run("voices", "--folder", str(tmp_path / "none"), "show", "anna")[0] == 2
    assert run("voices", "show", "anna", "--folder", str(anna.folder))[0] == 0
    anna.path("anna").write_bytes(b"")
    assert run("voices", "show", "anna")[0] == 1
    with pytest.raises(ValueError, match="is no whole voice"):
        main(["voices", "--debug", "show", "anna"])


def test_files_of_others_are_left_alone(run, anna, small_folder):
    shutil.copy(anna.path("anna"), anna.folder / "not a name.safetensors")
    (anna.folder / "notes.txt").write_text("")
    assert anna.names() == ["anna"] and len(run("voices")[1].splitlines()) == 3


def test_files_say_what_they_are(anna):
    with safe_open(anna.path("anna"), "pt") as file:
        assert file.metadata()["format"] == FORMAT and "t3.speaker_emb" in file.keys()  # noqa: SIM118


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_a_recording(run, library, small_folder, tmp_path, reference_wav):
    """As a shell's <(...) is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def heard(speak):
        writer = threading.Thread(target=pipe.write_bytes, args=(reference_wav.read_bytes(),))
        writer.start()
        found = speak()
        writer.join()
        return found

    code, out, err = heard(lambda: run("voices", "add", "anna", str(pipe), "--model", str(small_folder)))
    assert code == 0 and " of pipe for model " in out, err
    by_pipe = heard(lambda: said(run, small_folder, tmp_path / "a.wav", "--voice", str(pipe)))
    assert by_pipe == said(run, small_folder, tmp_path / "b.wav", "--voice", "anna")
    assert run("voices", "add", "b", str(tmp_path), "--model", str(small_folder))[0] == 1
    assert "does not exist" in run("say", "Hello.", "-o", "x.wav", "--voice", str(tmp_path))[2]
