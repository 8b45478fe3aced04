"""The command: what it writes and prints, and that nothing ends in a traceback or half a file."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from chatterbox.cli import main
from chatterbox.cli.output import warnings_shown
from chatterbox.cli.speaker import Speaker
from chatterbox.engine.guards import GUARDS, NO_GUARD
from chatterbox.engine.prefill import Prefiller
from chatterbox.kvcache.eviction import SCORERS
from chatterbox.kvcache.registry import POLICIES
from tests.support.folders import SMALL, write_tokenizer

SAMPLES = SMALL.sampling.max_new_tokens * 960


@pytest.fixture
def say(small_folder, tmp_path, capfd):
    """Runs ``chatterbox say`` on the small model: (exit code, standard output, standard error)."""

    def run(*arguments: str, model: str = str(small_folder), output: str = "out.wav") -> tuple[int, str, str]:
        try:
            code = main(["say", "Hello there.", "-o", str(tmp_path / output), "--model", model, *arguments])
        except SystemExit as exit_:  # argparse's way out
            code = exit_.code
        return code, *capfd.readouterr()

    return run


def files(tmp_path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_writes_the_file_and_one_line(say, tmp_path):
    code, out, err = say("--seed", "1")
    assert code == 0 and all(line.startswith("chatterbox: warning: ") for line in err.splitlines())
    assert re.fullmatch(r".*out\.wav: 0\.32 s of audio in .* s \(real-time factor .*\), model .*\n", out)
    wav, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 24_000 and wav.shape == (SAMPLES,) and np.abs(wav).max() > 0.01
    assert files(tmp_path) == ["out.wav"]


def test_seed_repeats(say, tmp_path):
    wavs = []
    for name, seed in (("a.wav", "1"), ("b.wav", "1"), ("c.wav", "2")):
        assert say("--seed", seed, output=name)[0] == 0
        wavs.append((tmp_path / name).read_bytes())
    assert wavs[0] == wavs[1] != wavs[2]


def test_settings_stand_anywhere_and_win(say, small_folder, tmp_path):
    longer = "sampling.max_new_tokens=12"
    assert say("--seed", "1", longer)[0] == 0
    assert soundfile.info(tmp_path / "out.wav").frames == 12 * 960
    before = ["say", "Hello there.", longer, "seed=1", "-o", str(tmp_path / "b.wav")]
    assert main([*before, "--model", str(small_folder)]) == 0
    assert soundfile.info(tmp_path / "b.wav").frames == 12 * 960


def test_voice_changes_the_sound(say, tmp_path, reference_wav):
    assert say("--seed", "1", output="a.wav")[0] == 0
    assert say("--seed", "1", "--voice", str(reference_wav), output="b.wav")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("setting", ["kvcache=dynamic", "kvcache=none", "use_cache=false", "kvcache.prefix_mib=0"])
def test_no_cache_setting_changes_the_sound(say, tmp_path, setting):
    assert say("--seed", "1", output="a.wav")[0] == say("--seed", "1", setting, output="b.wav")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_a_voice_on_disk_serves_the_next_process(say, tmp_path, monkeypatch):
    setting = f"kvcache.disk_folder={tmp_path / 'kept'}"
    assert say("--seed", "1", setting, output="a.wav")[0] == 0
    assert len(list((tmp_path / "kept").iterdir())) == 3  # the voice, its text, its empty text
    monkeypatch.setattr(Prefiller, "_run", lambda *_: pytest.fail("computed again"))
    assert say("--seed", "1", setting, output="b.wav")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_folder_of_another_layout_and_a_language(mtl_folder, tmp_path, version):
    folder = shutil.copytree(mtl_folder, tmp_path / "multilingual")
    (folder / "t3_mtl23ls_v2.safetensors").rename(folder / f"t3_mtl23ls_{version}.safetensors")
    for output, *language in (("a.wav", "--language", "fr"), ("b.wav", "language=FR"), ("c.wav", "--language", "de")):
        command = ["say", "Bonjour.", "-o", str(tmp_path / output), "--model", str(folder), "--seed", "1", *language]
        assert main(command) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.wav", "b.wav", "c.wav"))
    assert a == b != c


@pytest.mark.parametrize(
    ("model", "language", "message"),
    [
        ("mtl_folder", [], "speaks 23 languages; name one with --language"),
        ("small_folder", ["--language", "fr"], "speaks English alone; leave out --language fr"),
        ("mtl_folder", ["--language", "xx"], "language_id 'xx' is not supported; choose from ar, da"),
    ],
)
def test_language_and_model_must_fit(request, capsys, tmp_path, model, language, message):
    folder = request.getfixturevalue(model)
    assert main(["say", "Hi.", "-o", str(tmp_path / "out.wav"), "--model", str(folder), *language]) == 2
    assert message in capsys.readouterr().err and files(tmp_path) == []


def test_a_folder_of_several_models_says_how_to_speak_the_other(small_folder, mtl_folder, tmp_path, capsys):
    folder = shutil.copytree(small_folder, tmp_path / "clone")
    shutil.copytree(mtl_folder, folder, dirs_exist_ok=True)
    command = ["say", "Bonjour.", "-o", str(tmp_path / "out.wav"), "--model", str(folder), "--language", "fr"]
    assert main(command) == 2
    remedy = "leave out --language fr, or speak the folder's multilingual model with model.t3_model=v2"
    assert remedy in capsys.readouterr().err
    assert main([*command, "model.t3_model=v2"]) == 0


def test_a_pack_speaks_its_language_alone(mtl_folder, tmp_path, capsys):
    folder = shutil.copytree(mtl_folder, tmp_path / "pack")
    (folder / "t3_mtl23ls_v2.safetensors").rename(folder / "t3_pt_br.safetensors")
    for model in ("pt-br", str(folder)):
        command = ["say", "Oi.", "-o", str(tmp_path / "out.wav"), "--model", model, "--language"]
        assert main([*command, "fr"]) == 2
        assert "t3_pt_br.safetensors speaks 'pt' alone, got language_id 'fr'" in capsys.readouterr().err
    assert main([*command, "PT"]) == 0


def test_a_language_that_a_folders_tokenizer_marks(mtl_folder, tmp_path):
    folder = shutil.copytree(mtl_folder, tmp_path / "persian")
    write_tokenizer(folder / "grapheme_mtl_merged_expanded_v1.json", SMALL.t3, ("fr", "fa"))
    assert main(["say", "Salam.", "-o", str(tmp_path / "out.wav"), "--model", str(folder), "--language", "FA"]) == 0


def test_other_formats(say, tmp_path):
    assert say(output="out.flac")[0] == 0
    assert soundfile.info(tmp_path / "out.flac").format == "FLAC"


def test_progress_is_for_terminals(say, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert say("--seed", "1")[0] == 0
    shown = terminal.getvalue()
    assert "loading the model ..." in shown and "speaking: " in shown and shown.endswith("\r\033[K")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "x"], "seed must be a whole number or None, got 'x'; None and -1 draw one"),
        (["--seed", "1.5"], "seed must be a whole number or None, got '1.5'"),
        (["--device", "foo"], "device 'foo' does not exist"),
        (["--nonsense"], "unrecognised argument '--nonsense'"),
        (["stray"], "unrecognised argument 'stray'"),
        (["temperature=1"], "say has no setting 'temperature'; it has model, kvcache, engine, s3gen, precision"),
        (["sampling.temp=1"], "sampling has no setting 'temp'; it has temperature, cfg_weight"),
        (["kvcache.pressure.soft=1"], "kvcache.pressure has no setting 'soft'; it has soft_mib, hard_mib"),
        (["kvcache=static,none"], "kvcache=static,none is several values; chatterbox bench -m runs one after"),
        (["--config-dir", "absent"], "config folder 'absent' does not exist"),
        (["sampling.temperature=-1"], "temperature must be a number from 0 to 10, got -1"),
        (["sampling.temperature=hot"], "sampling.temperature must be float, got 'hot'"),
        (["sampling.max_new_tokens=0"], "max_new_tokens must be a whole number from 1"),
        (["exaggeration=-1"], "exaggeration must be a number from 0 to 10"),
        (["watermark=maybe"], "say.watermark must be bool"),
        (["sampling=unknown"], "sampling has no choice 'unknown'; it has checkpoint, greedy"),
        (["guard=heavy"], "guard must be one of light, alignment, none, got 'heavy'"),
        (["guard=alignment"], 'guard "alignment" needs a model with alignment heads'),
        (["kvcache=paged"], "kvcache has no choice 'paged'; it has compressed, dynamic"),
        (["kvcache=null"], "kvcache has no choice None; it has compressed"),
        (["model=folder"], "model.source: Missing mandatory value"),
        (["kvcache.policy=paged"], "cache policy 'paged' does not exist; choose from "),
        (["kvcache.eviction=age"], "eviction 'age' does not exist; choose from attention, prosody, recency, silence"),
        (["kvcache.eviction=silence*x"], "the weight of eviction 'silence' must be a number above 0, got 'x'"),
        (["kvcache.window_size=1024"], "one step less than max_cache_size 1024, got 1024; raise max_cache_size"),
        (["kvcache=sliding", "kvcache.max_cache_size=9"], "window_size must be from 1 to 8, one step less than"),
        (["kvcache.host_codec=zip"], "codec 'zip' does not exist"),
        (["kvcache.replacement=fifo"], "replacement 'fifo' does not exist"),
        (["kvcache.disk_mib=-1"], "disk_mib must be a whole number from 0, got -1"),
        (["seed=[1"], "cannot read 'seed=[1': "),
    ],
)
def test_usage_errors(say, tmp_path, arguments, message):
    code, out, err = say(*arguments)
    assert code == 2 and out == "" and message in err
    assert "Traceback" not in err and files(tmp_path) == []


@pytest.mark.parametrize("arguments", [[], ["say"], ["say", "hello"], ["sing", "hello", "-o", "x.wav"]])
def test_missing_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and "usage: chatterbox" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out.txt", "out", "absent/out.wav"])
def test_output_that_cannot_be_written(say, tmp_path, output):
    code, _, err = say(output=output)
    assert code == 2 and err.startswith("chatterbox: error: cannot write") and err.count("\n") == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voice", "absent.wav"], "'absent.wav' does not exist"),
        (["--voice", __file__], "cannot be read as audio"),
    ],
)
def test_failures_are_one_line(say, tmp_path, arguments, message):
    (tmp_path / "out.wav").write_text("what was there before")
    code, out, err = say(*arguments)
    assert code == 1 and out == "" and message in err and err.count("\n") == 1
    assert files(tmp_path) == ["out.wav"] and (tmp_path / "out.wav").read_text() == "what was there before"


def test_unknown_model(say):
    code, _, err = say(model="/no/such/folder")
    assert code == 1 and "no model '/no/such/folder': use" in err and err.count("\n") == 1


def test_a_text_of_any_length_is_spoken(small_folder, tmp_path):
    """More than one utterance: each says as much as the small model can."""
    text = "The machine over there can talk as long as you like. " * 10
    assert main(["say", text, "-o", str(tmp_path / "out.wav"), "--model", str(small_folder), "--seed", "1"]) == 0
    assert soundfile.info(tmp_path / "out.wav").frames > 4 * SAMPLES


def test_failed_write_leaves_the_old_file(say, tmp_path, monkeypatch):
    def broken_write(file, _):
        os.write(os.open(file.name, os.O_WRONLY), b"half")
        raise OSError("no space left on device")

    (tmp_path / "out.wav").write_text("what was there before")
    monkeypatch.setattr(soundfile.SoundFile, "write", broken_write)
    code, _, err = say()
    assert code == 1 and "no space left on device" in err
    assert files(tmp_path) == ["out.wav"] and (tmp_path / "out.wav").read_text() == "what was there before"


def test_warnings_are_lines_of_the_command(capsys):
    logger = logging.getLogger("chatterbox.kvcache.prefix.disk")
    with warnings_shown():
        for _ in range(2):
            logger.warning("cannot write to %s", "kept")
        logger.info("not worth a line")
    logger.warning("nothing listens any more")
    assert capsys.readouterr().err == "chatterbox: warning: cannot write to kept\n"


def test_interrupt(say, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Speaker, "speak", interrupted)
    assert say()[::2] == (130, "chatterbox: error: interrupted\n")


def test_unexpected_errors_are_one_line_unless_debugging(say, monkeypatch):
    def fails(*_, **__):
        raise KeyError("inner")

    monkeypatch.setattr(Speaker, "speak", fails)
    assert say()[::2] == (1, "chatterbox: error: KeyError('inner')\n")
    with pytest.raises(KeyError):
        say("--debug")


def test_as_a_program(small_folder, tmp_path):
    """The installed command, in a process of its own, offline."""
    command = [sys.executable, "-m", "chatterbox.cli", "say", "", "-o", str(tmp_path / "out.wav")]
    done = subprocess.run([*command, "--model", str(small_folder), "--seed", "1"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert all(line.startswith("chatterbox: warning: ") for line in done.stderr.splitlines())
    assert soundfile.info(tmp_path / "out.wav").frames == SAMPLES


def test_help_names_every_choice(capsys):
    with pytest.raises(SystemExit):
        main(["say", "--help"])
    words = set(re.findall(r"[\w.]+", capsys.readouterr().out))
    assert {*POLICIES, *SCORERS, *GUARDS, NO_GUARD} <= words
    assert {"kvcache.full_heads", "kvcache.pressure.soft_mib", "sampling.top_k", "model.local_files_only"} <= words
