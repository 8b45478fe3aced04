"""Multilingual v2, end to end against the installed chatterbox-tts 0.1.7, as test_peer.py does for English.

Upstream's alignment analyser is switched off: it ends an utterance at the second equal token (docs/migrating.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatterbox.checkpoints import MULTILINGUAL
from chatterbox.config import T3Config
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.pipeline import SpeechRequest, draw_speech_tokens
from tests.peer.support import (
    MAX_NEW_TOKENS,
    SEED,
    WAV_ATOL,
    compare_conditionals,
    run_upstream,
    write_full_size,
)

pytestmark = pytest.mark.peer

TEXT = "Une seule phrase; dite deux fois."
LANGUAGE = "fr"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Full-size synthetic weights, removed afterwards."""
    with tempfile.TemporaryDirectory() as name:
        yield write_full_size(Path(name) / "checkpoint", T3Config.multilingual(), MULTILINGUAL)


@pytest.fixture(scope="module")
def upstream(folder) -> dict[str, torch.Tensor]:
    return run_upstream(folder, "multilingual", TEXT, "--language", LANGUAGE)


@pytest.fixture(scope="module")
def ours(folder, upstream) -> ChatterboxMultilingualTTS:
    tts = ChatterboxMultilingualTTS.from_local(folder, "cpu")
    tts.prepare_conditionals(folder / "reference.wav")
    return tts


def test_conditionals(ours, upstream):
    compare_conditionals(ours.conds, upstream)


def test_speech_tokens(ours, upstream):
    torch.manual_seed(SEED)
    request = SpeechRequest(TEXT, ours.conds, ours.sampling, language_id=LANGUAGE)
    tokens = draw_speech_tokens(ours.t3, ours.tokenizer, ours.conds, request)
    assert len(tokens) == MAX_NEW_TOKENS and tokens.unique().numel() > MAX_NEW_TOKENS // 2
    assert torch.equal(tokens, upstream["tokens"])


def test_waveform(ours, upstream):
    torch.manual_seed(SEED)
    wav = ours.generate(TEXT, LANGUAGE)
    assert wav.abs().max() > 0.05
    torch.testing.assert_close(wav, upstream["wav"], rtol=0, atol=WAV_ATOL)
