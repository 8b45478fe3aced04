"""A small model with random weights, in a folder of upstream's layout, and a recording to clone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile

from chatterbox.tts import ChatterboxTTS
from tests.folders import recording, write_folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared between tests: read only."""
    return write_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def own_folder(small_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def small_tts(small_folder: Path) -> ChatterboxTTS:
    """Shared between tests: no test may assign to it."""
    return ChatterboxTTS.from_local(small_folder, "cpu")


@pytest.fixture(scope="session")
def reference_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a voice unlike the built-in one."""
    path = tmp_path_factory.mktemp("reference") / "voice.wav"
    soundfile.write(path, recording(2.0, pitch=230.0), 24_000)
    return path
