"""Voices that clients bring: which model listens to a recording."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatterbox.checkpoints import EMBEDDED_VOICES
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError
from chatterbox.serve.models import Loading, ModelHub
from chatterbox.serve.voices import Voices
from chatterbox.voice.conditionals import Conditionals


@pytest.fixture
def listened() -> list[str]:
    """Models that were given a recording, by name."""
    return []


@pytest.fixture
def voices(tmp_path: Path, listened: list[str]) -> Voices:
    conds = Conditionals.load(EMBEDDED_VOICES / "tiny" / "conds.safetensors")

    def model(name: str) -> Any:
        def conditionals(recording: io.BytesIO, hearing: Any) -> Any:
            listened.append(name)
            return conds

        own = SimpleNamespace(conditionals=conditionals)
        return SimpleNamespace(name=name, family=f"family of {name}", synthesizer=own, voices=lambda: ["mary"])

    config = ServerConfig(voices=str(tmp_path))
    loadings = [Loading("tiny", lambda: model("tiny")), Loading("turbo", lambda: model("turbo"))]
    return Voices(ModelHub(loadings, config), config)


@pytest.mark.parametrize(("asked", "listens"), [(None, "tiny"), ("turbo", "turbo"), ("tts-1", "tiny")])
def test_the_model_that_is_named_listens(voices: Voices, listened: list[str], asked: str | None, listens: str) -> None:
    voices.add("mary", b"RIFF", model=asked)
    assert listened == [listens] and voices.about("mary")["model"] == listens


def test_no_other_model_listens_in_place_of_one_that_is_not_there(voices: Voices, listened: list[str]) -> None:
    with pytest.raises(ApiError, match="there is no model 'nano'; there are tiny, turbo") as caught:
        voices.add("mary", b"RIFF", model="nano")
    assert (caught.value.status, caught.value.param, listened) == (404, "model", [])
