"""The container and the service: what they run is there, and does what they say."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatterbox.cli import main
from chatterbox.cli.signals import Ended, exit_code
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.security import is_open
from tests.packaging.support import ROOT
from tests.packaging.test_distribution import PROJECT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
UNIT = ROOT / "deploy" / "chatterbox.service"


def instruction(name: str) -> str:
    """What follows the last of that name."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)[-1].strip()


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, encoding="utf-8")
    return dict(parser["Service"])


COMMANDS = {
    "container": json.loads(instruction("ENTRYPOINT")),
    "service": shlex.split(re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)[1]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_started_serves_whoever_has_the_key(name: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    served = []
    monkeypatch.setattr("chatterbox.serve.running.serve", lambda loadings, *given: served.append(given[:2]))
    monkeypatch.setenv("CHATTERBOX_API_KEY", "secret")
    program, *words = COMMANDS[name]
    assert Path(program).name in PROJECT["project"]["scripts"] and main(words) == 0
    [(config, keys)] = served
    assert (config.host, config.port, keys) == ("0.0.0.0", ServerConfig().port, ("secret",))
    monkeypatch.delenv("CHATTERBOX_API_KEY")
    assert main(words) == 2 and "CHATTERBOX_API_KEY" in capsys.readouterr().err


def test_the_image_is_made_of_what_there_is() -> None:
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept and all((ROOT / name).exists() for name in copied)
    extra = re.search(r"^ARG EXTRAS=(\w+)$", DOCKERFILE, re.MULTILINE)[1]
    assert extra in PROJECT["project"]["optional-dependencies"]
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT") and instruction("USER") != "root"
    folder = instruction("VOLUME")
    assert f"XDG_DATA_HOME={folder} " in DOCKERFILE and f"-g chatterbox {folder}\n" in DOCKERFILE


def test_the_image_asks_whether_it_is_ready() -> None:
    python, option, code = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    compile(code, "HEALTHCHECK", "exec")
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)'", code).groups()
    assert (python, option, is_open(path, lists=False)) == ("python", "-c", True)
    assert port == instruction("EXPOSE") == str(ServerConfig().port)
    done = subprocess.run([sys.executable, "-c", code.replace(port, "9")], capture_output=True, check=False)
    assert done.returncode == 1 and b"refused" in done.stderr


def test_the_service_ends_as_the_server_does(service: dict[str, str]) -> None:
    """tests/integration/test_serve_process.py has the code of a server that was answering: 0."""
    assert float(service["TimeoutStopSec"]) > ServerConfig().drain_seconds
    assert service["SuccessExitStatus"] == str(exit_code(Ended(signal.SIGTERM)))
    assert service["Type"] == "exec" and service["DynamicUser"] == "yes" and "EnvironmentFile" in service
    assert service["StateDirectory"] == "chatterbox" and "XDG_DATA_HOME=%S " in service["Environment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_service(tmp_path: Path) -> None:
    program = COMMANDS["service"][0]
    text = UNIT.read_text().replace(program, sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    command = ["systemd-analyze", "verify", "--recursive-errors=no", tmp_path / UNIT.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr
