"""English, end to end against the installed chatterbox-tts 0.1.7: one checkpoint folder, one seed, two implementations.

Needs ``make peer-env`` (``make test-peer`` does both), about 4 GB of memory and of disk, and some minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatterbox.config import T3Config
from chatterbox.pipeline import SpeechRequest, draw_speech_tokens
from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC
from tests.peer.support import (
    MAX_NEW_TOKENS,
    SEED,
    WAV_ATOL,
    compare_conditionals,
    run_upstream,
    write_full_size,
)

pytestmark = pytest.mark.peer

TEXT = "Hello there, this is one sentence; spoken twice."


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Full-size synthetic weights, removed afterwards."""
    with tempfile.TemporaryDirectory() as name:
        yield write_full_size(Path(name) / "checkpoint", T3Config.english_only())


@pytest.fixture(scope="module")
def upstream(folder) -> dict[str, torch.Tensor]:
    return run_upstream(folder, "english", TEXT, "--source", folder / "source.wav")


@pytest.fixture(scope="module")
def ours(folder, upstream) -> ChatterboxTTS:
    tts = ChatterboxTTS.from_local(folder, "cpu")
    tts.prepare_conditionals(folder / "reference.wav")
    return tts


def test_conditionals(ours, upstream):
    compare_conditionals(ours.conds, upstream)


def test_speech_tokens(ours, upstream):
    torch.manual_seed(SEED)
    request = SpeechRequest(TEXT, ours.conds, ours.sampling)
    tokens = draw_speech_tokens(ours.t3, ours.tokenizer, ours.conds, request)
    assert len(tokens) == MAX_NEW_TOKENS and tokens.unique().numel() > MAX_NEW_TOKENS // 2
    assert torch.equal(tokens, upstream["tokens"])


def test_waveform(ours, upstream):
    torch.manual_seed(SEED)
    wav = ours.generate(TEXT)
    assert wav.abs().max() > 0.05
    torch.testing.assert_close(wav, upstream["wav"], rtol=0, atol=WAV_ATOL)


def test_voice_conversion(ours, upstream, folder):
    torch.manual_seed(SEED)
    wav = ChatterboxVC(ours.s3gen, "cpu", ours.conds.gen).generate(folder / "source.wav")
    torch.testing.assert_close(wav, upstream["converted"], rtol=0, atol=WAV_ATOL)
