"""The folder of voices by name."""

from __future__ import annotations

import pytest

from chatterbox.runtime.files import whole
from chatterbox.voice.library import VoiceError, VoiceLibrary


def test_what_killed_writers_left_is_removed_and_what_is_being_written_stays(tmp_path):
    library, left = VoiceLibrary(tmp_path), tmp_path / ".mary.safetensors.0123456789abcdef.part"
    for path in (left, tmp_path / "anna.safetensors"):
        path.write_bytes(b"a voice")
    with whole(tmp_path / "bob.safetensors") as part:
        library.sweep()
        assert part.exists() and not left.exists()
    assert library.names() == ["anna", "bob"]
    VoiceLibrary(tmp_path / "absent").sweep()


def test_a_voice_that_is_gone_meanwhile_was_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(VoiceLibrary, "names", lambda self: ["mary"])
    with pytest.raises(VoiceError, match="no voice 'mary'"):
        VoiceLibrary(tmp_path).remove("mary")
