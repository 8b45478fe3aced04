"""Names of voices, and the files behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

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
