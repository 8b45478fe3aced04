"""The same commands from a clone that is not installed, from an editable install and from a wheel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile

from chatterbox.cli.configs import filled
from chatterbox.cli.hydra_config import compose_config, to_yaml
from tests.packaging.support import environment_with_dependencies, pip, run, wheel_of

OVERRIDES = ("kvcache=phone", "kvcache.window_size=100", "sampling.temperature=0.6")
KINDS = ("clone", "editable", "wheel")


@pytest.fixture(scope="module", params=KINDS)
def command(request: pytest.FixtureRequest, clone: Path, tmp_path_factory: pytest.TempPathFactory):
    """``chatterbox`` of each kind, and the folder that its modules come from."""
    folder = tmp_path_factory.mktemp(request.param)
    python = environment_with_dependencies(folder / "environment")
    if request.param == "clone":
        return [python, "-m", "chatterbox.cli"], {"PYTHONPATH": str(clone / "src")}, clone / "src"
    if request.param == "editable":
        pip(python, "install", "--no-deps", "--no-build-isolation", "-e", clone)
        return [python.parent / "chatterbox"], {}, clone / "src"
    pip(python, "install", "--no-deps", wheel_of(clone, folder))
    return [python.parent / "chatterbox"], {}, folder / "environment"


@pytest.fixture
def own_yaml(tmp_path: Path) -> Path:
    (tmp_path / "own" / "kvcache").mkdir(parents=True)
    (tmp_path / "own" / "kvcache" / "phone.yaml").write_text("defaults:\n  - sliding\nmax_cache_size: 300\n")
    return tmp_path / "own"


def test_the_same_commands(command, own_yaml, tmp_path):
    """Its YAML is found, the user's joins, the configuration is the one that is composed here, and it speaks."""
    words, variables, home = command
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "XDG_DATA_HOME": str(tmp_path / "data"), **variables}
    options = {"cwd": tmp_path, "env": environment}
    python = words[0].parent / "python"
    where = run(python, "-c", "import chatterbox.cli; print(chatterbox.cli.__file__)", **options)
    assert Path(where.strip()).is_relative_to(home)
    given = (*OVERRIDES, "--config-dir", own_yaml)
    printed = run(*words, "config", "benchmark", "benchmark=long", *given, **options)
    assert printed == to_yaml(filled(compose_config("benchmark", ["benchmark=long", *OVERRIDES], config_dir=own_yaml)))
    assert "policy: sliding" in printed and "max_cache_size: 300" in printed
    run(*words, "say", "Hello there.", "-o", "hello.wav", "--seed", "1", *given, **options)
    assert 0.3 < soundfile.info(str(tmp_path / "hello.wav")).duration < 4.0
    assert "built-in" in run(*words, "voices", **options)
    assert "kvcache.window_size=512" in run(*words, "say", "-h", **options)
