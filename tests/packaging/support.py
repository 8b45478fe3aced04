"""Shared by the tests of installations: commands, and a copy of what is distributed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, **options: object) -> str:
    """Standard output of a command; what it said where it failed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_tree(target: Path) -> Path:
    """What is here and makes up the distribution, in a new folder ``target``."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "configs"):
        run("cp", "-r", ROOT / name, target / name)
    return target


def environment_with_dependencies(folder: Path) -> Path:
    """The Python of a virtual environment that is lent this one's packages, but no editable install of them."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    lent = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    Path(site, "lent.pth").write_text("\n".join(lent) + "\n")  # .pth files within are not read
    return python


def pip(python: Path, *arguments: object) -> str:
    """What pip prints, at work in the environment of ``python``; it reaches no index."""
    return run(sys.executable, "-m", "pip", "--python", python, *arguments)


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel of the project in ``source``, built into ``folder``."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))
