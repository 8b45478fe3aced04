"""Names of voices, and the files behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatterbox.runtime.files import whole
from chatterbox.voice.library import MAX_NAME_LEN, VoiceError, VoiceLibrary, name_of


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    for name in ("mary", "john"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    return VoiceLibrary(tmp_path)


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("mary", "mary"),
        ("Aunt Mary", "Aunt-Mary"),
        ("Aunt Mary.wav", "Aunt-Mary"),
        (" mary.MP3 ", "mary"),
        ("mary.v2", "mary-v2"),
        ("../../mary", "mary"),
        ("玛丽", ""),
        ("..", ""),
    ],
)
def test_a_title_becomes_a_name(title: str, name: str) -> None:
    assert name_of(title) == name


def test_a_voice_gets_another_name(library: VoiceLibrary) -> None:
    library.rename("mary", "anna")
    assert library.names() == ["anna", "john"] and library.path("anna").read_bytes() == b"mary"


@pytest.mark.parametrize(
    ("name", "new", "message"),
    [
        ("anna", "x", "no voice 'anna'"),
        ("../mary", "x", "no voice '../mary'"),
        ("mary", "john", "there is a voice 'john' already"),
        ("mary", "../x", "a voice cannot be called '../x'"),
        ("mary", "x" * (MAX_NAME_LEN + 1), f"at most {MAX_NAME_LEN} characters, .* has {MAX_NAME_LEN + 1}"),
    ],
)
def test_names_that_cannot_be_had(library: VoiceLibrary, name: str, new: str, message: str) -> None:
    with pytest.raises(VoiceError, match=message):
        library.rename(name, new)
    assert library.names() == ["john", "mary"]


def test_what_killed_writers_left_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    library, left = VoiceLibrary(tmp_path), tmp_path / ".mary.safetensors.0123456789abcdef.part"
    for path in (left, tmp_path / "anna.safetensors"):
        path.write_bytes(b"a voice")
    with whole(tmp_path / "bob.safetensors") as part:
        library.sweep()
        assert part.exists() and not left.exists()
    assert library.names() == ["anna", "bob"]
    VoiceLibrary(tmp_path / "absent").sweep()


def test_a_voice_that_is_gone_meanwhile_was_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VoiceLibrary, "names", lambda self: ["mary"])
    with pytest.raises(VoiceError, match="no voice 'mary'"):
        VoiceLibrary(tmp_path).remove("mary")
