"""The wheel and the sdist: every module, every YAML file, every voice, nothing else; and the main job from them."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
import soundfile

from tests.packaging.support import ROOT, copy_tree, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

SOURCE = ROOT / "src" / "chatterbox"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = r"\d+\.\d+\.\d+"
OVERRIDES = ("kvcache=sliding", "kvcache.window_size=256", "sampling.max_new_tokens=10")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what is here, without touching the working tree."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = copy_tree(folder / "tree")
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=copy)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist, so that whatever is in it went through both."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "-w", sdist.parent)
    run(sys.executable, "-m", "pip", "wheel", *options, sdist)
    return next(sdist.parent.glob("*.whl"))


def test_every_file_is_in_the_wheel(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    expected = {f"chatterbox/{p.relative_to(SOURCE)}" for p in sources}
    configs = {p for pattern in ("*.py", "**/*.yaml") for p in (ROOT / "configs").glob(pattern)}
    expected |= {f"chatterbox/configs/{p.relative_to(ROOT / 'configs')}" for p in configs}
    assert names == expected
    assert "chatterbox/py.typed" in names


def test_licence_and_notice_are_in_both(sdist, wheel):
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE"} <= names
    with tarfile.open(sdist) as archive:
        assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in archive.getnames()}


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


def test_the_version_is_in_one_place(wheel):
    import chatterbox

    assert re.fullmatch(VERSION, chatterbox.__version__)
    assert f"chatterbox_kvcache-{chatterbox.__version__}-" in wheel.name
    found = {
        str(path.relative_to(ROOT))
        for folder in ("src", "configs", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".md", ".toml"}
        and re.search(rf"version[\W_]+{re.escape(chatterbox.__version__)}\b", path.read_text(encoding="utf-8"))
    }
    assert found == {"src/chatterbox/__init__.py"}
    assert "version" not in PROJECT["project"]


def test_the_workflow_runs_what_the_package_says_it_supports():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tested = re.findall(r'"([\d.]+)"', re.search(r"python: \[(.+)\]", workflow)[1])
    named = [re.search(r"Python :: (3\.\d+)$", line) for line in PROJECT["project"]["classifiers"]]
    assert tested == [found[1] for found in named if found]
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"
    assert "bash .ci/run" in workflow and "make test-oldest" in workflow


def test_the_oldest_that_is_tested_is_the_oldest_that_is_allowed():
    """Of each dependency the first release of its range, or of a range of releases the last."""
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in lines[1:])
    tested = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in PROJECT["project"]["dependencies"]:
        name, _, oldest = requirement.partition(",")[0].partition(">=")
        wanted = tested[name]
        assert wanted == oldest or wanted.startswith(f"{oldest}."), f"{requirement}: {wanted} is tested"


def test_configs_are_importable_where_hydra_looks():
    assert files("chatterbox.configs").joinpath("say.yaml").is_file()


def new_environment(folder: Path) -> Path:
    """The Python of a virtual environment that has nothing in it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def check_main_job(python: Path, folder: Path) -> None:
    """``chatterbox say`` of that environment, as it is and with overrides, away from this tree."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    where = run(python, "-c", "import chatterbox; print(chatterbox.__file__)", cwd=folder, env=environment)
    assert Path(where.strip()).is_relative_to(python.parents[1])
    for name, overrides in (("plain.wav", ()), ("overridden.wav", OVERRIDES)):
        command = (python.parent / "chatterbox", "say", "Hello there.", "-o", name, "--seed", 1, *overrides)
        run(*command, cwd=folder, env=environment)
    seconds = soundfile.info(str(folder / "plain.wav")).duration
    assert 0.3 < soundfile.info(str(folder / "overridden.wav")).duration <= 0.41 < seconds < 4.0


def test_the_wheel_speaks(wheel, tmp_path):
    """In an environment that has this package from the wheel alone; what it depends on is lent by this one."""
    python = new_environment(tmp_path / "environment")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    # A path in a .pth file is searched, its own .pth files, an editable install among them, are not read.
    lent = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "lent.pth").write_text("\n".join(lent) + "\n")
    check_main_job(python, tmp_path)


@pytest.mark.slow
def test_the_wheel_speaks_in_an_empty_environment(wheel, tmp_path):
    """Everything it depends on is installed, as it says itself. Needs the package index, and minutes."""
    python = new_environment(tmp_path / "environment")
    constraints = ("-c", ROOT / "constraints.txt")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *constraints, wheel)
    check_main_job(python, tmp_path)
