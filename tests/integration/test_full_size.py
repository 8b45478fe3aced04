"""The published sizes with synthetic weights: each model loads from a folder of its layout and speaks for a second."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chatterbox.checkpoints import ENGLISH, MULTILINGUAL, Layout
from chatterbox.facade import SpeechModel
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from tests.folders import write_folder
from tests.parity.support import manifest

pytestmark = pytest.mark.slow

NUM_TOKENS = 32  # a second is 25; random weights also draw ids that are no speech


@dataclass(frozen=True)
class Published:
    cls: type[SpeechModel]
    layout: Layout
    manifest: str
    arguments: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "english": Published(ChatterboxTTS, ENGLISH, "t3_cfg"),
    "multilingual": Published(ChatterboxMultilingualTTS, MULTILINGUAL, "t3_mtl", {"language_id": "fr"}),
}


@pytest.fixture(params=MODELS)
def published(request) -> Published:
    return MODELS[request.param]


@pytest.fixture
def folder(published) -> Iterator[Path]:
    """Without a config.json: sizes and defaults are the published model's. Removed afterwards; it is 3 GB."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name) / "checkpoint", published.layout.config, layout=published.layout)
        (folder / "config.json").unlink()
        yield folder


def test_a_second_of_audio(published, folder):
    tts = published.cls.from_local(folder, "cpu")
    for part, name in ((tts.t3, published.manifest), (tts.s3gen, "s3gen"), (tts.ve, "ve")):
        assert {key: tuple(value.shape) for key, value in part.state_dict().items()} == manifest(name)
    assert tts.sampling == published.layout.config.sampling
    tts.sampling = dataclasses.replace(tts.sampling, max_new_tokens=NUM_TOKENS)
    wav = tts.generate("One second.", seed=0, **published.arguments)
    assert 20 * 960 <= wav.shape[1] <= NUM_TOKENS * 960 and not wav.shape[1] % 960
    assert wav.isfinite().all() and wav.abs().max() > 0.01
