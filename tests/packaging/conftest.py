"""The published models as programs written for chatterbox-tts have them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from tests.packaging.support import copy_tree, run
from tests.support.folders import recording

TEXT = "Hello there, World."


@dataclass(frozen=True)
class Published:
    """A published model: where its class is, a folder fixture of its layout, what its `generate` needs."""

    module: str
    cls: str
    folder: str
    arguments: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "english": Published("chatterbox.tts", "ChatterboxTTS", "small_folder"),
    "multilingual": Published(
        "chatterbox.mtl_tts", "ChatterboxMultilingualTTS", "mtl_folder", {"language_id": "fr", "min_p": 0.1}
    ),
    "turbo": Published("chatterbox.tts_turbo", "ChatterboxTurboTTS", "turbo_folder"),
}


@pytest.fixture(params=MODELS)
def published(request) -> Published:
    """Each model in turn, or those that a test names."""
    return MODELS[request.param]


@pytest.fixture
def model(published, request) -> Any:
    """Loaded anew: such programs assign to it."""
    cls = getattr(importlib.import_module(published.module), published.cls)
    return cls.from_local(request.getfixturevalue(published.folder), "cpu")


@pytest.fixture
def conditionals(published) -> Any:
    """The class of voices, from where the model's class is."""
    return importlib.import_module(published.module).Conditionals


@pytest.fixture(scope="module")
def voice_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("voices") / "speaker.wav"
    soundfile.write(path, recording(6.0, pitch=210.0), 24_000)
    return str(path)


@pytest.fixture
def say(published, model) -> Any:
    def generate(**arguments) -> torch.Tensor:
        torch.manual_seed(3)
        return model.generate(TEXT, **{**published.arguments, **arguments})

    return generate


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is here, without what an installation left in it."""
    copy = copy_tree(tmp_path_factory.mktemp("clone") / "tree")
    for folder in (copy / "src").glob("*.egg-info"):
        run("rm", "-r", folder)
    return copy
