"""docs/configuration.md: its tables are those of the dataclasses, its commands and snippets run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from chatterbox.cli import main
from chatterbox.cli.config import BenchmarkCommandConfig
from chatterbox.cli.hydra_config import compose_config
from chatterbox.cli.schema import groups_of, settings_of
from docs.configuration_tables import PAGE, filled

TEXT = PAGE.read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_tables_are_as_they_would_be_made():
    assert filled(TEXT) == TEXT, "python docs/configuration_tables.py writes them anew"


def test_every_key_and_choice_is_there():
    """Read off the page, not made by what made it."""
    cells = re.findall(r"^\| `([\w.-]+)` \|", TEXT, re.MULTILINE)
    choices = [one.name for group in groups_of(BenchmarkCommandConfig).values() for one in group]
    assert {one.key for one in settings_of(BenchmarkCommandConfig)} | set(choices) <= set(cells)


def test_every_setting_says_what_it_is():
    assert not [one.key for one in settings_of(BenchmarkCommandConfig) if not one.about]


def test_a_missing_table_is_an_error():
    with pytest.raises(ValueError, match="the page has tables"):
        filled(TEXT.replace("<!-- table kvcache -->", ""))


def test_commands_run(tmp_path, monkeypatch, capsys):
    """In their order, on the embedded voice, offline; the sweep says one word."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    Path("chapters").mkdir()
    for name in ("story.txt", "chapters/one.txt"):
        Path(name).write_text("It was a dark night.")
    lines = [line for block in snippets("sh") for line in block.splitlines()]
    for line in lines:
        words = shlex.split(line)
        quick = ["benchmark=quick"] if words[1] == "bench" else []
        assert words[0] == "chatterbox" and main([*words[1:], *quick]) == 0, (line, capsys.readouterr().err)
    assert all(
        soundfile.info(name).duration > 0.3 for name in ("hello.wav", "streamed.wav", "again.wav", "morning.wav")
    )
    assert (tmp_path / "kept.tar").is_file() and not list((tmp_path / "kept").iterdir())
    assert {path.name for path in Path("sweep").iterdir()} == {"jobs.jsonl", "table.md", "plots.png"}
    assert len(lines) == 17 and soundfile.info(Path("audio", "one.opus")).duration > 0.3


def test_own_yaml(tmp_path):
    (tmp_path / "kvcache").mkdir()
    (tmp_path / "kvcache" / "phone.yaml").write_text(snippets("yaml")[0])
    kvcache = compose_config("say", ["kvcache=phone"], config_dir=tmp_path).kvcache
    assert (kvcache.policy, kvcache.max_cache_size, kvcache.window_size) == ("static", 256, 128)


def test_python_snippet(tmp_path):
    script = "\n".join([*snippets("python"), "assert tts.generate('Hello.', seed=1).shape[1] > 5000"])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
