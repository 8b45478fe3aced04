"""Programs that speak through OpenAI, their own code, against the server: `make test-clients`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatterbox.serve.config import ServerConfig
from tests.integration.test_serve import Running, served

pytestmark = pytest.mark.clients
SCRIPTS = Path(__file__).resolve().parents[1] / "clients"
INSTALLED = Path(os.environ.get("CHATTERBOX_CLIENTS", ".venv-clients"))
TEXT, KEY = "Hello there.", "secret"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    one = Running(served(), ServerConfig(), (KEY,))
    yield one
    one.close()


def ran(running: Running, *command: str | Path, cwd: Path) -> dict[str, Any]:
    """What a script says of the speech that it got."""
    words = [*command, f"http://127.0.0.1:{running.port}/v1", KEY, TEXT]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["livekit", "pipecat"])
def test_an_agents_framework_hears_it(running: Running, tmp_path: Path, name: str) -> None:
    python = INSTALLED / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no {python}: make test-clients")
    told = ran(running, python, SCRIPTS / f"speak_{name}.py", cwd=tmp_path)
    assert 0.5 < told["seconds"] < 3


def test_openais_package_for_node(running: Running, tmp_path: Path) -> None:
    node, modules = shutil.which("node"), INSTALLED / "node_modules"
    if node is None or not modules.exists():
        pytest.skip(f"there is no node, or no {modules}: make test-clients")
    (tmp_path / "node_modules").symlink_to(modules.resolve())
    shutil.copy(SCRIPTS / "speak.mjs", tmp_path)
    told = ran(running, node, "speak.mjs", cwd=tmp_path)
    assert told["whole"] > 5_000 and told["streamed"] > 24_000 and told["status"] == 404
