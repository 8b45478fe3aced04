"""End to end against the installed chatterbox-tts 0.1.7: one checkpoint folder, one seed, two implementations.

Needs ``make peer-env`` (``make test-peer`` does both), about 4 GB of memory and of disk, and some minutes a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from chatterbox.base import SpeechModel
from chatterbox.checkpoints import ENGLISH, MULTILINGUAL, TURBO, Layout
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from tests.peer.support import (
    MAX_NEW_TOKENS,
    SEED,
    WAV_ATOL,
    compare_conditionals,
    run_upstream,
    write_full_size,
)
from tests.support.decoding import stream

pytestmark = pytest.mark.peer


@dataclass(frozen=True)
class Peer:
    """A model of both packages, ``model`` by run_upstream.py's name.

    ``options``: of run_upstream.py, for what ``preparing`` and ``speaking`` do here.
    """

    model: str
    cls: type[SpeechModel]
    layout: Layout
    text: str
    options: tuple[str, ...] = ()
    preparing: dict[str, Any] = field(default_factory=dict)
    speaking: dict[str, Any] = field(default_factory=dict)


PEERS = {
    "english": Peer("english", ChatterboxTTS, ENGLISH, "Hello there, this is one sentence; spoken twice."),
    # Its alignment analyser is off: it ends an utterance at the second equal token (docs/migrating.md).
    "multilingual": Peer(
        "multilingual",
        ChatterboxMultilingualTTS,
        MULTILINGUAL,
        "Une seule phrase; dite deux fois.",
        options=("--language", "fr"),
        speaking={"language_id": "fr"},
    ),
    # The analyser is on. No token is decoded twice in a row here, and it forbids the stop token at most.
    "multilingual with its analyser": Peer(
        "multilingual",
        ChatterboxMultilingualTTS,
        MULTILINGUAL,
        "Une seule phrase; dite deux fois.",
        options=("--language", "fr", "--analyser"),
        speaking={"language_id": "fr", "guard": "alignment"},
    ),
    # Normalising the loudness raises in 0.1.7 under numpy 2.
    "turbo": Peer(
        "turbo",
        ChatterboxTurboTTS,
        TURBO,
        "Hello there [laugh], this is one sentence; spoken twice.",
        preparing={"norm_loudness": False},
    ),
}


@pytest.fixture(scope="module", params=PEERS)
def peer(request) -> Peer:
    return PEERS[request.param]


@pytest.fixture(scope="module")
def folder(peer) -> Iterator[Path]:
    """Full-size synthetic weights, removed afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        yield write_full_size(Path(temporary) / "checkpoint", peer.layout)


@pytest.fixture(scope="module")
def upstream(peer, folder) -> dict[str, torch.Tensor]:
    return run_upstream(folder, peer.model, peer.text, *peer.options)


@pytest.fixture(scope="module")
def ours(peer, folder, upstream) -> SpeechModel:
    tts = peer.cls.from_local(folder, "cpu")
    tts.prepare_conditionals(folder / "reference.wav", **peer.preparing)
    return tts


def test_conditionals(ours, upstream):
    compare_conditionals(ours.conds, upstream)


def test_speech_tokens(peer, ours, upstream):
    torch.manual_seed(SEED)
    request = SynthesisRequest(peer.text, ours.conds, ours.sampling, **peer.speaking)
    [decode] = ours.synthesizer.decode_requests(request)
    tokens = torch.tensor(list(stream(ours.t3, decode)))
    assert len(tokens) == MAX_NEW_TOKENS and tokens.unique().numel() > MAX_NEW_TOKENS // 2
    assert torch.equal(tokens, upstream["tokens"])


def test_waveform(peer, ours, upstream):
    torch.manual_seed(SEED)
    wav = ours.generate(peer.text, **peer.speaking)
    assert wav.abs().max() > 0.05
    torch.testing.assert_close(wav, upstream["wav"], rtol=0, atol=WAV_ATOL)


def test_voice_conversion(ours, upstream, folder):
    torch.manual_seed(SEED)
    wav = ChatterboxVC(ours.s3gen, "cpu", ours.conds.gen).generate(folder / "source.wav")
    torch.testing.assert_close(wav, upstream["converted"], rtol=0, atol=WAV_ATOL)
