"""The measures of the quality benchmarks, on signals whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.lib.measures import (
    RATE,
    Utterance,
    cosine,
    f0_rmse,
    interval,
    leading_agreement,
    log_mel_distance,
    position_agreement,
    warp,
)


def voiced(hz: float, seconds: float = 0.6, *, gain: float = 0.1, silence: float = 0.2) -> np.ndarray:
    """A tone of ten harmonics between two silences, at RATE."""
    time = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 11))
    quiet = np.zeros(int(silence * RATE))
    return np.concatenate([quiet, gain * tone, quiet]).astype(np.float32)


def distances(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    first, second = Utterance.of(one, RATE), Utterance.of(other, RATE)
    path = warp(first, second)
    return log_mel_distance(first, second, path), f0_rmse(first, second, path)


def test_the_same_audio_is_at_distance_zero_on_the_diagonal():
    one, other = (Utterance.of(voiced(120), RATE) for _ in range(2))
    path = warp(one, other)
    assert (path[:, 0] == path[:, 1]).all() and len(path) == len(one.log_mel)
    assert np.isfinite(one.f0).sum() > 20  # the melody is compared at all
    assert log_mel_distance(one, other, path) == f0_rmse(one, other, path) == 0.0


@pytest.mark.parametrize("semitones", [1.0, -2.0, 5.0])
def test_a_transposed_tone_is_that_many_semitones_away(semitones):
    _, away = distances(voiced(120 * 2 ** (semitones / 12)), voiced(120))
    assert away == pytest.approx(abs(semitones), abs=0.15)


def test_ten_times_the_amplitude_is_twenty_decibels_where_there_is_sound():
    wav = voiced(120, silence=0.0)
    one, other = Utterance.of(wav, RATE), Utterance.of(wav / 10, RATE)
    loud = one.log_mel > -55
    assert loud.sum() > 100
    assert (one.log_mel - other.log_mel)[loud] == pytest.approx(20.0, abs=0.01)


def test_warping_forgives_timing_and_not_sound():
    slower, other_sound = voiced(120, 0.9), voiced(120, 0.9, gain=0.01)
    reference = voiced(120)
    timing, _ = distances(slower, reference)
    sound, _ = distances(other_sound, reference)
    assert timing < 1.0 < 5.0 < sound


def test_a_path_goes_through_all_frames_of_both_in_order():
    one, other = Utterance.of(voiced(120, 0.9), RATE), Utterance.of(voiced(150), RATE)
    path = warp(one, other)
    for side, utterance in enumerate((one, other)):
        assert set(path[:, side]) == set(range(len(utterance.log_mel)))
        assert (np.diff(path[:, side]) >= 0).all()


def test_without_a_voiced_frame_there_is_no_f0_distance():
    _, away = distances(np.zeros(RATE, np.float32), voiced(120))
    assert np.isnan(away)


def test_other_sample_rates_are_brought_to_one():
    assert Utterance.of(np.zeros(24_000, np.float32), 24_000).seconds == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no samples"):
        Utterance.of(np.zeros(0, np.float32), RATE)


def test_cosine_knows_direction_alone():
    one = np.array([1.0, 2.0, 2.0])
    assert cosine(one, 7 * one) == pytest.approx(1.0)
    assert cosine(one, -one) == pytest.approx(-1.0)
    assert cosine(one, np.array([2.0, -1.0, 0.0])) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("drawn", "leading", "places"),
    [
        ([1, 2, 3, 4], 1.0, 1.0),
        ([1, 2, 9, 4], 0.5, 0.75),
        ([9, 2, 3, 4], 0.0, 0.75),
        ([1, 2], 0.5, 0.5),
        ([1, 2, 3, 4, 5, 6, 7, 8], 1.0, 0.5),
        ([], 0.0, 0.0),
    ],
)
def test_agreement_of_tokens(drawn, leading, places):
    exact = [1, 2, 3, 4]
    assert leading_agreement(exact, drawn) == leading
    assert position_agreement(exact, drawn) == places


def test_an_interval_holds_the_mean_and_is_wider_where_groups_agree_within():
    rng = np.random.default_rng(1)
    independent = [rng.normal(size=(4, 1)) for _ in range(40)]
    same_within = [np.repeat(group[:1], 4, axis=0) for group in independent]

    def width(groups: list[np.ndarray]) -> float:
        low, high = interval(groups, lambda rows: float(rows.mean()))
        assert low < float(np.concatenate(groups).mean()) < high
        return high - low

    assert width(same_within) > 1.5 * width(independent)


def test_an_interval_of_equal_groups_is_a_point_and_one_group_has_none():
    assert interval([np.full((2, 1), 3.0)] * 5, lambda rows: float(rows.mean())) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        interval([np.zeros((2, 1))], lambda rows: float(rows.mean()))
