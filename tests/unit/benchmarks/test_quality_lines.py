"""Lines that `make quality` has kept: none, and broken ones, are told in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        (None, ["--summarize"], "has no lines; measure some first, without --summarize"),
        ('{"text": "a"}\n{"tex', ["--summarize"], "rms.jsonl is broken at line 2; remove the lines from there on"),
        (None, ["--texts", "0"], "argument --texts: must be a whole number of 1 to 40, got 0"),
    ],
)
def test_what_cannot_be_summarized_is_told(tmp_path: Path, line: str | None, options: list[str], message: str) -> None:
    if line is not None:
        (tmp_path / "rms.jsonl").write_text(line)
    command = [sys.executable, "-m", "benchmarks.quality.quality", "--work", str(tmp_path), "-o", str(tmp_path / "q")]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert ran.returncode == 2 and ran.stderr.splitlines()[-1].endswith(message), ran.stderr
    assert not (tmp_path / "q").exists()
