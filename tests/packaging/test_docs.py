"""The pages: their Python runs, the files they name are there, every module is listed, the site is built of them all.

A snippet that opens with a comment ``# needs …`` (the published weights, a GPU) is compiled and not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.module_table import PAGE, filled

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "chatterbox"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FOLDERS, ENDINGS = "docs|tests|benchmarks|configs|src", "md|py|jsonl|json|yaml|txt|safetensors"
FILE = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:{ENDINGS})\b")
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names files of the past


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def needs_more(snippet: str) -> bool:
    return snippet.startswith("# needs ")


def test_the_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/kvcache.md"} <= set(NAMES)
    assert snippets(ROOT / "README.md")


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_of_a_page_runs(page, tmp_path):
    """From top to bottom as one program, offline, in an empty folder."""
    for snippet in snippets(page):
        compile(snippet, str(page), "exec")
    script = "\n".join(snippet for snippet in snippets(page) if not needs_more(snippet))
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


def test_files_are_named():
    """What the test above looks for, it finds."""
    assert FILE.findall("see docs/kvcache.md, `benchmarks/results/linear.json`.") == [
        "docs/kvcache.md",
        "benchmarks/results/linear.json",
    ]


def test_the_list_of_modules_is_as_it_would_be_made():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text, "python docs/module_table.py writes it anew"


def test_every_module_has_one_line():
    """Read off the page, not made by what made it."""
    listed = re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py"))
    assert all(4 < len(line) < 200 for _, line in listed)
