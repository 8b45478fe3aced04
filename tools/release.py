"""Whether a tag can be released, and what is new in it: ``python tools/release.py v0.1.0`` prints its notes.

Fails in one line where the tag is not the version of the package, or CHANGELOG.md has nothing under it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(package: str) -> str:
    """``__version__`` of the package's source, the only place that it stands in."""
    return re.findall(r'^__version__ = "(.+)"$', package, re.MULTILINE)[0]


def notes(tag: str, package: str, changelog: str) -> str:
    """What CHANGELOG.md says of ``tag``. Raises ValueError if it cannot be released."""
    if tag != f"v{version(package)}":
        raise ValueError(f"the tag is {tag}, the package's version {version(package)}; tag v{version(package)}")
    heading = rf"^## \[?{re.escape(tag[1:])}\]?(?:[ \t][^\n]*)?\n"
    found = re.search(heading + r"(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ValueError(f"CHANGELOG.md says nothing of {tag[1:]}; give what is unreleased that heading")
    return found[1].strip()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/release.py TAG")
    package = (ROOT / "src" / "chatterbox" / "__init__.py").read_text(encoding="utf-8")
    try:
        print(notes(sys.argv[1], package, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    except ValueError as error:
        sys.exit(f"cannot release: {error}")


if __name__ == "__main__":
    main()
