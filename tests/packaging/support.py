"""Shared by the tests of installations: commands, and a copy of what is distributed."""

from __future__ import annotations

import subprocess
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
