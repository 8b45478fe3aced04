"""The voice that is part of the package: it speaks, ends by itself, and follows the reference it is given."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from chatterbox import ChatterboxTTS
from chatterbox.checkpoints import EMBEDDED_VOICES
from chatterbox.cli import main
from chatterbox.evaluation.recognition import edit_distance, recognize, words_of
from chatterbox.synthesis.request import SynthesisRequest
from tests.support.folders import recording
from tests.support.speaking import speak
from tools.tiny_voice.corpus import evaluation_set
from tools.tiny_voice.silence import silent_tokens

SENTENCES = evaluation_set("known")[:6]
MAX_WORD_ERROR_RATE = 0.24  # flite's own on the 60 known-word sentences, and 0.15
MAX_PACKAGED_BYTES = 30_000_000


@pytest.fixture(scope="module")
def tts() -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained("cpu", model="tiny")


def test_it_is_small_enough() -> None:
    assert sum(path.stat().st_size for path in (EMBEDDED_VOICES / "tiny").iterdir()) <= MAX_PACKAGED_BYTES


@pytest.mark.parametrize("sentence", SENTENCES)
def test_it_ends_by_itself(tts: ChatterboxTTS, sentence: str) -> None:
    wav = tts.generate(sentence, seed=1, watermark=False)[0].numpy()
    seconds_per_character = len(wav) / tts.sr / len(sentence)
    assert 0.03 < seconds_per_character < 0.12  # flite needs 0.065 on these
    assert np.abs(wav).max() > 0.05


def test_a_recogniser_understands_what_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sentences, three seeds: one recogniser's mishearing weighs less."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = errors = 0
    for sentence in SENTENCES[:4]:
        for seed in ("1", "2", "3"):
            assert main(["say", sentence, "-o", str(tmp_path / "said.wav"), "--seed", seed]) == 0
            wav, rate = soundfile.read(tmp_path / "said.wav", dtype="float32")
            words += len(words_of(sentence))
            errors += edit_distance(words_of(sentence), recognize(wav, rate))
    assert errors / words <= MAX_WORD_ERROR_RATE


def test_its_silent_tokens_are_those_that_are_heard_as_silence(tts: ChatterboxTTS) -> None:
    requests = [SynthesisRequest(sentence, tts.conds, tts.sampling, seed=1, watermark=False) for sentence in SENTENCES]
    said = [speak(tts.t3, tts.s3gen, tts.tokenizer, request) for request in requests]
    heard = silent_tokens((one.speech_tokens, one.audio[0], one.sample_rate) for one in said)
    assert heard == tts.t3.hp.silent_speech_tokens


def test_cached_equals_uncached(tts: ChatterboxTTS) -> None:
    short = "Where is my hat?"
    cached = tts.generate(short, seed=3, watermark=False)
    assert torch.equal(cached, tts.generate(short, seed=3, use_cache=False, watermark=False))


def test_threads_with_different_voices_do_not_mix(tts: ChatterboxTTS) -> None:
    """Two references, four calls at once: each equals the same call alone."""
    references = [recording(2.0, pitch=p) for p in (110.0, 220.0)]
    calls = [(SENTENCES[i % 2], references[i // 2]) for i in range(4)]

    def speak(call: tuple[str, np.ndarray]) -> torch.Tensor:
        return tts.generate(call[0], audio_prompt_path=call[1], seed=5, watermark=False)

    alone = [speak(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(speak, calls))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_pitch_follows_the_reference(tts: ChatterboxTTS) -> None:
    """The built-in voice, resampled upwards, is a higher one."""
    reference = tts.generate(SENTENCES[0], seed=1, watermark=False)[0].numpy()
    higher = librosa.resample(reference, orig_sr=tts.sr, target_sr=round(tts.sr / 1.19))
    made = [
        tts.generate(SENTENCES[1], audio_prompt_path=r, seed=2, watermark=False)[0].numpy() for r in (reference, higher)
    ]
    pitches = [np.median(librosa.yin(wav, fmin=80, fmax=400, sr=tts.sr)) for wav in made]
    assert pitches[1] > 1.04 * pitches[0]
