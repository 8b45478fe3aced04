"""The published sizes with synthetic weights: each model loads from a folder of its layout and speaks for a second."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chatterbox.base import SpeechModel
from chatterbox.checkpoints import ENGLISH, MULTILINGUAL, NANO, TURBO, Layout
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from tests.parity.support import manifest
from tests.support.folders import write_folder

pytestmark = pytest.mark.slow

NUM_TOKENS = 32  # a second is 25; random weights also decode ids that are no speech, and Turbo appends three


@dataclass(frozen=True)
class Published:
    cls: type[SpeechModel]
    layout: Layout
    manifests: dict[str, str]
    loading: dict[str, Any] = field(default_factory=dict)
    speaking: dict[str, Any] = field(default_factory=dict)


TURBO_PARTS = {"s3gen": "s3gen_meanflow", "ve": "ve"}
MODELS = {
    "english": Published(ChatterboxTTS, ENGLISH, {"t3": "t3_cfg", "s3gen": "s3gen", "ve": "ve"}),
    "multilingual": Published(
        ChatterboxMultilingualTTS,
        MULTILINGUAL,
        {"t3": "t3_mtl", "s3gen": "s3gen", "ve": "ve"},
        speaking={"language_id": "fr"},
    ),
    "turbo": Published(ChatterboxTurboTTS, TURBO, {"t3": "t3_turbo", **TURBO_PARTS}),
    "nano": Published(ChatterboxTurboTTS, NANO, TURBO_PARTS, loading={"nano": True}),
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
    tts = published.cls.from_local(folder, "cpu", **published.loading)
    for part, name in published.manifests.items():
        shapes = {key: tuple(value.shape) for key, value in getattr(tts, part).state_dict().items()}
        assert shapes == {key: shape for key, shape in manifest(name).items() if key != "tfmr.wte.weight"}
    assert tts.sampling == published.layout.config.sampling
    tts.sampling = dataclasses.replace(tts.sampling, max_new_tokens=NUM_TOKENS)
    wav = tts.generate("One second.", seed=0, **published.speaking)
    assert 20 * 960 <= wav.shape[1] <= (NUM_TOKENS + 3) * 960 and not wav.shape[1] % 960
    assert wav.isfinite().all() and wav.abs().max() > 0.01
