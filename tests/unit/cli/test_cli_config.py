"""``chatterbox config`` and help: what would be run with and what can be set, without weights or network."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from chatterbox.checkpoints import PUBLISHED
from chatterbox.cli import main
from chatterbox.cli.config import BenchmarkCommandConfig, SayCommandConfig, StreamCommandConfig
from chatterbox.cli.hydra_config import compose_config
from chatterbox.cli.schema import PRIMARY, groups_of, settings_of
from chatterbox.config import from_dict, to_dict
from tests.support.command import command
from tests.support.folders import SMALL

COMMANDS = {
    "say": SayCommandConfig,
    "stream": StreamCommandConfig,
    "bench": BenchmarkCommandConfig,
    "config": BenchmarkCommandConfig,
}


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs ``chatterbox config …`` offline: (exit code, standard output, standard error)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return command(capsys, "config")


@pytest.mark.parametrize(
    ("arguments", "primary", "overrides"),
    [
        ([], "say", []),
        (["kvcache=sliding", "seed=3"], "say", ["kvcache=sliding", "seed=3"]),
        (["stream", "streaming=smooth"], "stream", ["streaming=smooth"]),
        (["benchmark", "benchmark=long", "--seed", "7"], "benchmark", ["benchmark=long", "seed=7"]),
    ],
)
def test_every_key_with_its_value(run, small_folder, arguments, primary, overrides):
    code, out, err = run(*arguments, "--model", str(small_folder))
    printed = yaml.safe_load(out)
    assert code == 0 and err == "" and printed["sampling"] == to_dict(SMALL.sampling)
    model = ["model=folder", f"model.source={small_folder}"]
    sampling = [f"sampling.{key}={value}" for key, value in to_dict(SMALL.sampling).items()]
    expected = compose_config(primary, [*overrides, *model, *sampling])
    assert from_dict(PRIMARY[primary], printed) == expected
    assert ("streaming" in printed, "benchmark" in printed) == (
        isinstance(expected, StreamCommandConfig),
        "bench" in primary,
    )


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_published_models_are_known_without_their_weights(run, model):
    code, out, _ = run("--model", model, "sampling.temperature=0.3")
    expected = {**to_dict(PUBLISHED[model].config.sampling), "temperature": 0.3}
    assert code == 0 and yaml.safe_load(out)["sampling"] == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sing"], 2, "no configuration 'sing'; choose from say, stream, benchmark"),
        (["say", "streaming=smooth"], 2, "say has no setting 'streaming'"),
        (["kvcache.policy=paged"], 2, "cache policy 'paged' does not exist"),
        (["guard=heavy"], 2, "guard must be one of"),
        (["--device", "foo"], 2, "device 'foo' does not exist"),
        (["--language", "xx"], 2, "language_id 'xx' is not supported"),
        (["--model", "/no/such/folder"], 1, "no model '/no/such/folder'"),
    ],
)
def test_errors_are_one_line(run, arguments, code, message):
    result, out, err = run(*arguments)
    assert result == code and out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_what_there_is(command, capsys, monkeypatch):
    """Groups, choices and keys are those of the folder and the dataclasses; no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as exit_:
        main([command, "-h"])
    shown, config = capsys.readouterr().out, COMMANDS[command]
    listed = re.findall(r"^  ([\w.]+)=", shown[shown.index("settings, as") :], re.MULTILINE)
    assert exit_.value.code == 0 and listed == [one.key for one in settings_of(config)]
    for group, choices in groups_of(config).items():
        block = re.search(rf"^  {group}\n((?:    .*\n)+)", shown, re.MULTILINE)[1]
        assert re.findall(r"^    ([\w-]+)", block, re.MULTILINE) == [one.name for one in choices]
    table = shown[shown.index("choices, as") : shown.index("examples:")]
    assert max(map(len, table.splitlines())) <= 90


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from chatterbox.cli import main\n"
        "try: main(['bench', '-h'])\n"
        "except SystemExit: print({'torch', 'hydra', 'omegaconf', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
