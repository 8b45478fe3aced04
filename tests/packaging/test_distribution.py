"""The wheel: every module, every YAML file, every voice, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "chatterbox"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from what is here, without touching the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "configs"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_every_file_is_in_the_wheel(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    expected = {f"chatterbox/{p.relative_to(SOURCE)}" for p in sources}
    configs = {p for pattern in ("*.py", "**/*.yaml") for p in (ROOT / "configs").glob(pattern)}
    expected |= {f"chatterbox/configs/{p.relative_to(ROOT / 'configs')}" for p in configs}
    assert names == expected


def test_licence_and_notice_are_in_the_wheel(wheel):
    names = {Path(name).name for name in wheel.namelist() if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE"} <= names


def test_every_package_is_declared():
    folders = {p.parent.relative_to(SOURCE.parent) for p in SOURCE.rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"chatterbox.configs"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_core_dependencies_are_ranges():
    core = PROJECT["project"]["dependencies"]
    assert all(re.fullmatch(r"[a-z0-9-]+>=[^=]+", requirement) for requirement in core)
    unwanted = {"torchaudio", "diffusers", "einops", "conformer", "onnx", "s3tokenizer", "gradio"}
    assert unwanted.isdisjoint(re.split("[>=<]", requirement)[0] for requirement in core)


def test_constraints_pin_every_core_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {re.split("[>=<]", requirement)[0] for requirement in PROJECT["project"]["dependencies"]} <= pinned


def test_configs_are_importable_where_hydra_looks():
    from importlib.resources import files

    assert files("chatterbox.configs").joinpath("say.yaml").is_file()
