"""What is released: a tag that is the version, with something to say in the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest

import chatterbox
from tools import release

PACKAGE = '__version__ = "1.2.0"\n'
CHANGELOG = (
    "# Changelog\n\n## Unreleased\n\n- later\n\n## 1.2.0 - 2026-12-01\n\n### Added\n\n- this\n\n## 1.1.0\n\n- that\n"
)


def test_the_version_is_the_packages() -> None:
    assert release.version(Path(chatterbox.__file__).read_text(encoding="utf-8")) == chatterbox.__version__


def test_notes_are_those_of_the_version_alone() -> None:
    assert release.notes("v1.2.0", PACKAGE, CHANGELOG) == "### Added\n\n- this"


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v1.3.0", CHANGELOG, r"the tag is v1.3.0, the package's version 1.2.0; tag v1.2.0"),
        ("1.2.0", CHANGELOG, "tag v1.2.0"),
        ("v1.2.0", "# Changelog\n\n## Unreleased\n\n- later\n", "says nothing of 1.2.0"),
        ("v1.2.0", "# Changelog\n\n## 1.2.0\n\n## 1.1.0\n\n- that\n", "says nothing of 1.2.0"),
        ("v1.2.0", "# Changelog\n\n## 1.2.0rc1\n\n- that\n\n## 1.2.01\n\n- more\n", "says nothing of 1.2.0"),
    ],
)
def test_what_cannot_be_released_says_why(tag: str, changelog: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        release.notes(tag, PACKAGE, changelog)
