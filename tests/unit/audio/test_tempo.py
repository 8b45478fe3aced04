"""Speed: length, pitch, level and place of what is said."""

from __future__ import annotations

import numpy as np
import pytest

from chatterbox.audio.tempo import MAX_PEAK, at_speed
from tests.support.folders import recording

RATE = 24_000
SPEEDS = [0.5, 0.75, 1.5, 2.0]


def tone(seconds: float, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("length", [1, 100, 959, 24_001])
def test_length_to_the_sample(length, speed):
    wav = at_speed(tone(2.0)[:length], RATE, speed)
    assert wav.shape == (round(length / speed),) and wav.dtype == np.float32 and np.isfinite(wav).all()


@pytest.mark.parametrize("speed", SPEEDS)
def test_pitch_and_level_stay(speed):
    middle = at_speed(tone(3.0), RATE, speed)[RATE // 2 : RATE]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * RATE / len(middle) == pytest.approx(440, abs=3)
    assert middle.std() == pytest.approx(tone(1.0).std(), rel=0.1)


@pytest.mark.parametrize("speed", SPEEDS)
def test_what_is_said_stays_at_its_place(speed):
    wav = np.zeros(2 * RATE, np.float32)
    wav[RATE : RATE + RATE // 2] = tone(0.5)
    loud = np.flatnonzero(np.abs(at_speed(wav, RATE, speed)) > 0.15)
    assert loud[0] == pytest.approx(RATE / speed, abs=0.06 * RATE)
    assert loud[-1] == pytest.approx(1.5 * RATE / speed, abs=0.06 * RATE)


def test_the_same_bits_each_time():
    wav = recording(1.0)
    assert np.array_equal(at_speed(wav, RATE, 1.3), at_speed(wav, RATE, 1.3))


@pytest.mark.parametrize("peak", [0.9, 1.2])
def test_nothing_clips_that_did_not(peak):
    wav = np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32)
    wav *= peak / np.abs(wav).max()
    assert np.abs(at_speed(wav, RATE, 0.8)).max() <= max(MAX_PEAK, peak) + 1e-6
