"""Loudness: the standard's reference tone, the gates, and what the published package makes of a recording."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chatterbox.audio.loudness import MAX_PEAK, integrated_loudness, levelled, normalize_loudness
from tests.parity.support import load_golden, load_meta


def tone(seconds: float, rate: int, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 997 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_upstreams_recording():
    golden, meta = load_golden("loudness"), load_meta("loudness")
    wav = golden["in.wav"].numpy()
    normal = normalize_loudness(wav, 24_000)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, golden["out.wav"].numpy(), rtol=1e-5, atol=1e-7)
    assert 10 ** ((-27 - integrated_loudness(wav, 24_000)) / 20) == pytest.approx(meta["gain"], rel=1e-6)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_the_standards_tone(rate):
    assert integrated_loudness(tone(2.0, rate), rate) == pytest.approx(-3.01, abs=0.1)
    assert integrated_loudness(tone(2.0, rate, 0.1), rate) == pytest.approx(-23.01, abs=0.1)


def test_pauses_do_not_count():
    rate = 24_000
    speech = tone(3.0, rate, 0.1)
    paused = np.concatenate([speech, np.zeros(5 * rate, np.float32), 1e-5 * speech])
    assert integrated_loudness(paused, rate) == pytest.approx(integrated_loudness(speech, rate), abs=0.3)


@pytest.mark.parametrize("wav", [np.zeros(24_000, np.float32), tone(0.3, 24_000), tone(1.0, 24_000, 1e-5), np.zeros(0)])
def test_silent_and_very_short_recordings_stay_as_they_are(wav):
    assert integrated_loudness(wav, 24_000) == -math.inf
    assert normalize_loudness(wav, 24_000) is wav


def test_as_loud_as_asked():
    wav = normalize_loudness(tone(1.0, 24_000, 0.3), 24_000, target=-20.0)
    assert integrated_loudness(wav, 24_000) == pytest.approx(-20.0, abs=1e-3)


@pytest.mark.parametrize("target", [-30.0, -23.0, -16.0])
def test_speech_at_a_loudness(target):
    wav = levelled(tone(2.0, 24_000, 0.05), 24_000, target)
    assert wav.dtype == np.float32 and integrated_loudness(wav, 24_000) == pytest.approx(target, abs=1e-3)


def test_a_gain_has_limits():
    wav = tone(2.0, 24_000, 0.001)  # -63 LUFS
    np.testing.assert_allclose(levelled(wav, 24_000, -16.0), 10 * wav, rtol=1e-5)
    np.testing.assert_allclose(levelled(tone(2.0, 24_000), 24_000, -40.0), 0.1 * tone(2.0, 24_000), rtol=1e-5)


def test_nothing_clips():
    wav = tone(2.0, 24_000, 0.02)
    wav[24_000] = 0.5
    loud = levelled(wav, 24_000, -14.0)
    assert np.abs(loud).max() == pytest.approx(MAX_PEAK)
    np.testing.assert_allclose(loud, wav * (MAX_PEAK / 0.5), rtol=1e-5)


def test_a_word_that_is_shorter_than_a_block_is_as_loud_and_silence_stays():
    short = levelled(tone(0.2, 24_000, 0.05), 24_000, -20.0)
    assert np.abs(short).max() == pytest.approx(
        np.abs(levelled(tone(2.0, 24_000, 0.05), 24_000, -20.0)).max(), rel=0.05
    )
    for silent in (np.zeros(24_000, np.float32), np.zeros(0, np.float32)):
        assert levelled(silent, 24_000, -20.0) is silent
