"""Voices that clients bring: which model listens to a recording."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chatterbox.checkpoints import EMBEDDED_VOICES, load_models
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError
from chatterbox.serve.models import Loading, ModelHub
from chatterbox.serve.voices import Voices


@pytest.fixture
def listened() -> list[str]:
    """Models that were given a recording, by name."""
    return []


@pytest.fixture
def voices(tmp_path: Path, listened: list[str]) -> Voices:
    conds = load_models(EMBEDDED_VOICES / "tiny", "cpu").conds

    def model(name: str) -> Any:
        def conditionals(recording: io.BytesIO, hearing: Any) -> Any:
            listened.append(name)
            return conds

        own = SimpleNamespace(conditionals=conditionals)
        return SimpleNamespace(name=name, family=f"family of {name}", synthesizer=own, voices=lambda: ["mary"])

    config = ServerConfig(voices=str(tmp_path))
    loadings = [Loading("tiny", lambda: model("tiny")), Loading("turbo", lambda: model("turbo"))]
    return Voices(ModelHub(loadings, config), config)


def recording() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(24_000)
        wav.writeframes(np.zeros(24_000, np.int16).tobytes())
    return file.getvalue()


@pytest.mark.parametrize(("asked", "listens"), [(None, "tiny"), ("turbo", "turbo"), ("tts-1", "tiny")])
def test_the_model_that_is_named_listens(voices: Voices, listened: list[str], asked: str | None, listens: str) -> None:
    voices.add("mary", recording(), model=asked)
    assert listened == [listens] and voices.about("mary")["model"] == listens


def test_no_other_model_listens_in_place_of_one_that_is_not_there(voices: Voices, listened: list[str]) -> None:
    with pytest.raises(ApiError, match="there is no model 'nano'; there are tiny, turbo") as caught:
        voices.add("mary", recording(), model="nano")
    assert (caught.value.status, caught.value.param, listened) == (404, "model", [])
