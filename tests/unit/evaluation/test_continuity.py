"""Seams between chunks: each fault is seen by the measure that is meant for it, and by no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import chatterbox
from chatterbox.evaluation.continuity import ContinuityReport, verify_prosody_continuity
from chatterbox.evaluation.prosody import click_sizes, pitch, syllable_nuclei

RATE = 24_000
CHUNK = 60_720  # 2.53 s, no multiple of a syllable
NUM_CHUNKS = 9
SEAMS = np.arange(1, NUM_CHUNKS) * CHUNK
MEASURES = ("f0", "energy", "rate", "click")


def alternating(even: float, odd: float) -> np.ndarray:
    """A value per sample, another in every second chunk."""
    return np.repeat([even if index % 2 == 0 else odd for index in range(NUM_CHUNKS)], CHUNK)


def speech(pitch_hz: np.ndarray | float = 120.0, syllables: np.ndarray | float = 4.0) -> np.ndarray:
    """Harmonics below 4 kHz under a formant or two, whose pitch wanders and level swings per syllable, and noise."""
    num_samples = NUM_CHUNKS * CHUNK
    time = np.arange(num_samples) / RATE
    f0 = pitch_hz * 2 ** (np.sin(2 * np.pi * 0.7 * time) / 12)
    cycles = np.cumsum(np.broadcast_to(f0, num_samples)) / RATE
    random = np.random.default_rng(0)
    wav = np.zeros(num_samples)
    for harmonic in range(1, 25):
        hertz = 120.0 * harmonic
        gain = 1 / (1 + ((hertz - 500) / 200) ** 2) + 0.3 / (1 + ((hertz - 1500) / 200) ** 2)
        wav += gain * np.cos(2 * np.pi * (harmonic * cycles + random.random()))
    swing = np.sin(np.pi * np.cumsum(np.broadcast_to(syllables, num_samples)) / RATE) ** 2
    wav = 0.1 * wav * (0.3 + 0.7 * swing) + 3e-4 * random.standard_normal(num_samples)
    return wav.astype(np.float32)


def cut(wav: np.ndarray) -> list[np.ndarray]:
    return [part.copy() for part in np.split(wav, SEAMS)]


def stepped() -> list[np.ndarray]:
    return [part + np.float32(0.05 * (index % 2)) for index, part in enumerate(cut(speech()))]


def shifted() -> list[np.ndarray]:
    """A third of a period is missing at each seam."""
    return [part[:-67] for part in cut(speech())]


def faded_in() -> list[np.ndarray]:
    parts = cut(speech())
    for part in parts:
        part[:480] *= np.linspace(0, 1, 480, dtype=np.float32)
    return parts


def higher() -> list[np.ndarray]:
    return cut(speech(pitch_hz=120.0 * alternating(1.0, 2 ** (3 / 12))))


def louder() -> list[np.ndarray]:
    """6 dB within 4 ms around the seam."""
    gain = np.convolve(np.pad(alternating(1.0, 2.0), 48, mode="edge"), np.full(97, 1 / 97), mode="valid")
    return cut((speech() * gain).astype(np.float32))


def faster() -> list[np.ndarray]:
    return cut(speech(syllables=alternating(3.0, 6.0)))


@pytest.fixture(scope="module")
def whole() -> ContinuityReport:
    return verify_prosody_continuity(cut(speech()), RATE)


def seen(report: ContinuityReport) -> set[str]:
    """Measures that most seams exceed what is usual inside with."""
    return {name for name in MEASURES if getattr(report, name).seams.median > getattr(report, name).inside.p95}


def test_audio_that_was_only_cut(whole):
    assert (whole.num_chunks, whole.num_seams, whole.silent_seams, whole.unvoiced_seams) == (9, 8, 0, 0)
    assert whole.seconds == pytest.approx(NUM_CHUNKS * CHUNK / RATE)
    assert whole.clicks == 0 and seen(whole) == set()
    for name in MEASURES:
        measure = getattr(whole, name)
        assert measure.seams.count == 8 and measure.inside.count > 50
        assert measure.seams.p95 < 1.5 * measure.inside.p95, name


@pytest.mark.parametrize(
    ("make", "measures"),
    [
        (stepped, {"click"}),
        (shifted, {"click"}),
        (faded_in, {"click", "energy"}),
        (higher, {"f0"}),
        (louder, {"energy"}),
        (faster, {"rate"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_at_every_seam(make, measures, whole):
    report = verify_prosody_continuity(make(), RATE)
    assert seen(report) == measures
    for name in MEASURES:
        measure = getattr(report, name)
        assert measure.seams.count == 8
        assert measure.above >= 5 if name in measures else measure.above <= 2, f"{name}\n{report}"
        assert measure.inside.p95 == pytest.approx(getattr(whole, name).inside.p95, rel=0.25, abs=0.2)
    assert (report.clicks == 8) is ("click" in measures)


def test_one_click_among_many_seams():
    parts = cut(speech())
    parts[4] += np.float32(0.05)
    report = verify_prosody_continuity(parts, RATE)
    assert report.clicks == 2 and report.click.seams.median < report.click.inside.p95


@pytest.mark.parametrize(("gain", "is_heard"), [(5.0, True), (1.0, True), (0.1, True), (1e-3, False)])
def test_the_click_measure_has_no_level_down_to_what_nobody_hears(gain, is_heard, whole):
    sizes = click_sizes(gain * np.concatenate(shifted()), np.arange(1, 9) * (CHUNK - 67), RATE)
    assert sizes.min() > 5 * whole.click.inside.p95 if is_heard else sizes.max() < whole.click.inside.p95


def test_shapes_and_types_are_one(whole):
    parts = [torch.from_numpy(part) for part in cut(speech())]
    assert verify_prosody_continuity([part[None] for part in parts], RATE) == whole
    assert verify_prosody_continuity([*parts[:3], torch.zeros(1, 0), *parts[3:]], RATE) == whole
    assert verify_prosody_continuity([part.numpy().astype(np.float64) for part in parts], RATE) == whole


def test_a_table_for_people(whole):
    lines = str(whole).splitlines()
    assert lines[0] == "9 chunks, 22.8 s, 8 seams: 0 silent, 0 unvoiced"
    assert [line.split()[0] for line in lines[2:]] == ["F0", "energy", "rate", "click"]
    assert lines[-1].split()[-1] == str(whole.clicks) and f"{whole.click.seams.median:.2f}" in lines[-1]
    assert {len(line) for line in lines[1:]} == {len(lines[1])}


def test_a_single_chunk_has_no_seams():
    report = verify_prosody_continuity([speech()], RATE)
    assert report.num_seams == 0 and report.clicks == 0
    assert report.click.seams.count == 0 and np.isnan(report.click.seams.median)
    assert report.click.inside.count > 300 and "-" in str(report)


def test_silent_seams_count_apart():
    parts = cut(speech())
    for left, right in ((parts[0], parts[1]), (parts[4], parts[5])):
        left[-2400:], right[:2400] = 0.0, 0.0
    report = verify_prosody_continuity(parts, RATE)
    assert report.silent_seams == 2 and report.f0.seams.count == report.energy.seams.count == 6
    assert report.click.seams.count == 8 and report.clicks == 0


def test_silence():
    report = verify_prosody_continuity([np.zeros(24_000, np.float32)] * 4, RATE)
    assert report.silent_seams == report.num_seams == 3 and report.clicks == 0
    assert report.f0.seams.count == report.energy.seams.count == report.rate.seams.count == 0


def test_noise_has_no_pitch():
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * 24_000).astype(np.float32)
    report = verify_prosody_continuity(np.split(noise, 4), RATE)
    assert report.unvoiced_seams == 3 and report.silent_seams == 0 and report.f0.inside.count == 0
    assert report.energy.seams.count == 3


@pytest.mark.parametrize("length", [1, 7, 240, 500])
def test_chunks_shorter_than_a_frame(length):
    parts = np.split(speech()[: 60 * length], 60)
    report = verify_prosody_continuity(parts, RATE)
    assert report.num_seams == report.energy.seams.count == 59
    assert (report.click.seams.count > 0) is (length > 1)
    assert report.click.inside.count == 0 and report.clicks is None


@pytest.mark.parametrize("hertz", [70.0, 120.0, 237.0, 440.0])
def test_pitch_of_a_known_voice(hertz):
    time = np.arange(RATE) / RATE
    wav = sum(np.cos(2 * np.pi * hertz * k * time + k) / k for k in range(1, 12)).astype(np.float32)
    found = pitch(wav, np.arange(0, 20_000, 777), RATE, (60.0, 500.0))
    np.testing.assert_allclose(found, hertz, rtol=0.005)
    assert np.isnan(pitch(wav, np.asarray([-1, RATE - 100]), RATE, (60.0, 500.0))).all()


@pytest.mark.parametrize("syllables", [2.5, 4.0, 6.0])
def test_nuclei_are_the_swells_of_a_voice(syllables):
    wav = speech(syllables=syllables)
    nuclei = syllable_nuclei(wav, RATE, (60.0, 500.0), quiet=-60.0)
    assert len(nuclei) == pytest.approx(syllables * len(wav) / RATE, abs=1.5)
    assert np.diff(nuclei) / RATE == pytest.approx(1 / syllables, abs=0.031)
    noise = wav * np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    assert len(syllable_nuclei(noise, RATE, (60.0, 500.0), quiet=-60.0)) < 0.2 * len(nuclei)


@pytest.mark.parametrize(
    ("chunks", "options", "message"),
    [
        ([], {}, "0 chunks hold no samples"),
        ([np.zeros(0, np.float32)], {}, "1 chunks hold no samples"),
        ([np.ones(10), np.asarray([0.0, np.nan, np.inf])], {}, "chunk 1 has 2 NaN or infinite samples"),
        ([np.zeros((2, 100))], {}, r"chunk 0 has the shape \(2, 100\); give one channel"),
        ([torch.zeros(1, 1, 5)], {}, r"chunk 0 has the shape \(1, 1, 5\)"),
        ([torch.tensor(0.5)], {}, r"chunk 0 has the shape \(\)"),
        ([np.zeros(100, np.int16)], {}, "chunk 0 holds torch.int16; give floats"),
        ([np.zeros(100)], {"sr": 0}, "sr must be at least 8000 Hz, got 0"),
        ([np.zeros(100)], {"sr": -24_000}, "sr must be at least 8000 Hz, got -24000"),
        ([np.zeros(100)], {"max_places": 0}, "max_places must be at least 1, got 0"),
        ([np.zeros(100)], {"f0_limits": (300.0, 100.0)}, "f0_limits must rise"),
    ],
)
def test_bad_input(chunks, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        verify_prosody_continuity(chunks, **{"sr": RATE, **options})
    assert "\n" not in str(caught.value)


def test_names_of_the_package():
    assert chatterbox.verify_prosody_continuity is verify_prosody_continuity
    assert chatterbox.ContinuityReport is ContinuityReport
