"""Installed before, after or in place of chatterbox-tts, which has the same package name."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from chatterbox.runtime.installation import owner, remedy
from tests.packaging.support import ROOT, environment_with_dependencies, pip, run, wheel_of

UPSTREAM = """
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"
[project]
name = "chatterbox-tts"
version = "0.1.7"
[tool.setuptools]
packages = ["chatterbox"]
"""
SPEAK = (
    "import chatterbox; from chatterbox.tts import ChatterboxTTS; "
    "assert ChatterboxTTS.from_pretrained('cpu', model='tiny').generate('Hello.').shape[1] > 4_800"
)
SAYS = "chatterbox-tts is installed too"


@pytest.fixture(scope="module")
def wheels(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """This package, a stand-in for upstream's with two of its files, and the shim."""
    folder = tmp_path_factory.mktemp("wheels")
    upstream = folder / "upstream"
    (upstream / "chatterbox").mkdir(parents=True)
    (upstream / "pyproject.toml").write_text(UPSTREAM)
    (upstream / "chatterbox" / "__init__.py").write_text("from .tts import ChatterboxTTS\n__version__ = '0.1.7'\n")
    (upstream / "chatterbox" / "tts.py").write_text("class ChatterboxTTS: pass\n")
    shim = folder / "shim"
    shutil.copytree(ROOT / "tools" / "shim", shim, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    sources = {"ours": clone, "upstream": upstream, "shim": shim}
    return {name: wheel_of(source, folder / f"of-{name}") for name, source in sources.items()}


@pytest.fixture
def python(wheels, tmp_path) -> Path:
    """Of an environment with this package installed."""
    python = environment_with_dependencies(tmp_path / "environment")
    pip(python, "install", "--no-deps", wheels["ours"])
    return python


def outcome(*command: object) -> tuple[int, str]:
    """Exit code and standard error, outside the repository and offline."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd="/",
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stderr


def files_of(python: Path) -> set[Path]:
    package = run(python, "-c", "import chatterbox; print(chatterbox.__path__[0])", cwd="/").strip()
    return {path for path in Path(package).rglob("*") if path.is_file() and path.suffix != ".pyc"}


def repair(python: Path, wheel: Path) -> None:
    """The documented command; the wheel stands for the name, as no index is reached."""
    first, second = remedy("chatterbox-tts").removeprefix("run: ").partition(" (")[0].split(" && ")
    pip(python, *first.split()[1:])
    pip(python, *second.replace("chatterbox-kvcache", str(wheel)).split()[1:])


def test_installed_after_upstream_it_speaks_and_warns(wheels, tmp_path):
    python = environment_with_dependencies(tmp_path / "environment")
    for name in ("upstream", "ours"):
        pip(python, "install", "--no-deps", wheels[name])
    code, said = outcome(python, "-c", SPEAK)
    assert code == 0 and said.count(SAYS) == 1 and remedy("chatterbox-tts") in said
    assert "<string>:1: UserWarning" in said, "it points at the line that imports"
    repair(python, wheels["ours"])
    assert outcome(python, "-c", SPEAK) == (0, "")


@pytest.mark.parametrize("then", ["stays", "uninstalled"])
def test_overwritten_by_upstream_it_is_named_and_repaired(python, wheels, then):
    before = files_of(python)
    pip(python, "install", "--no-deps", wheels["upstream"])
    if then == "uninstalled":  # its __init__ and tts are gone, and so are ours
        pip(python, "uninstall", "-y", "chatterbox-tts")
    assert outcome(python, "-c", SPEAK)[0] == 1, "a stand-in that speaks is none"
    for command in ([python.parent / "chatterbox", "voices"], [python, "-m", "chatterbox.cli", "voices"]):
        code, said = outcome(*command)
        assert code == 1 and said.count("\n") == 1 and said.startswith("chatterbox: error: files of chatterbox-tts lie")
        assert "pip uninstall -y chatterbox-tts" in said and "--force-reinstall --no-deps chatterbox-kvcache" in said
    code, said = outcome(python, "-c", "import chatterbox.kvcache")
    assert code == 1 and "ImportError: files of chatterbox-tts lie over those of chatterbox-kvcache" in said
    repair(python, wheels["ours"])
    assert outcome(python, "-c", SPEAK) == (0, "") and files_of(python) == before


def test_the_shim_satisfies_a_requirement_and_owns_nothing(python, wheels):
    """Nothing is overwritten, pip is content, and without it all is as before."""
    before = {path: path.read_bytes() for path in files_of(python)}
    pip(python, "install", "--no-deps", wheels["shim"])
    assert "already satisfied" in pip(python, "install", "--no-index", "--no-deps", "chatterbox-tts==0.1.7")
    version = "import importlib.metadata; print(importlib.metadata.version('chatterbox-tts'))"
    assert run(python, "-c", version, cwd="/").strip() == "0.1.7+kvcache"
    assert {path: path.read_bytes() for path in files_of(python)} == before
    assert outcome(python, "-c", SPEAK) == (0, "")
    pip(python, "uninstall", "-y", "chatterbox-tts")
    assert {path: path.read_bytes() for path in files_of(python)} == before
    assert outcome(python, "-c", SPEAK) == (0, "")


def test_the_shim_takes_upstreams_place(python, wheels):
    """pip removes upstream's files, so the package is installed anew, as documented."""
    pip(python, "install", "--no-deps", wheels["upstream"])
    pip(python, "install", "--no-deps", wheels["shim"])
    pip(python, "install", "--no-deps", "--force-reinstall", wheels["ours"])
    assert outcome(python, "-c", SPEAK) == (0, "")


def test_the_shim_requires_this_package(wheels):
    with zipfile.ZipFile(wheels["shim"]) as files:
        metadata = next(files.read(name).decode() for name in files.namelist() if name.endswith("METADATA"))
    assert "Requires-Dist: chatterbox-kvcache" in metadata.splitlines()


@pytest.mark.parametrize("name", ["chatterbox_tts", "chatterbox_streaming"])
def test_owners_are_found_by_what_they_list(name, tmp_path):
    package = tmp_path / "chatterbox"
    package.mkdir()
    record = tmp_path / f"{name}-0.1.2.dist-info" / "RECORD"
    assert owner(str(package)) is None
    record.parent.mkdir()
    assert owner(str(package)) is None, "it has no list"
    record.write_text(f"{name}-0.1.2.dist-info/METADATA,,\nchatterbox_other/a.py,,\n")
    assert owner(str(package)) is None
    record.write_text("chatterbox/tts.py,sha256=x,1\n")
    assert owner(str(package)) == name.replace("_", "-")
    assert owner(str(tmp_path / "away.zip" / "chatterbox")) is None
    assert owner() is None
