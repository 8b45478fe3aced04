"""The watermark on a stream: nothing lost, nothing unmarked, no seam, and Perth finds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox.evaluation.continuity import Measure, verify_prosody_continuity
from chatterbox.watermark.perth import PerthWatermarker, WatermarkStream, read_watermark
from tests.support.folders import recording

RATE = 24_000
HOP, FADE, CONTEXT = 240, 480, 6_000


class Scaled:
    """Multiplies by the next of its gains; cuts and refuses as Perth does; remembers what it was given."""

    def __init__(self, *gains: float) -> None:
        self.gains, self.seen = gains or (1.0,), []

    def apply_watermark(self, signal: np.ndarray, sample_rate: int) -> np.ndarray:
        assert sample_rate == RATE and signal.dtype == np.float32 and len(signal) > 0.032 * RATE
        gain = self.gains[len(self.seen) % len(self.gains)]
        self.seen.append(signal.copy())
        return gain * signal[: len(signal) // HOP * HOP]


def marked_pieces(marker: object, wav: np.ndarray, *sizes: int, **options: float) -> list[np.ndarray]:
    """What each push and the end gave, for pieces of ``sizes`` over and over."""
    stream, pieces, start = WatermarkStream(marker, RATE, **options), [], 0
    while start < len(wav):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream.push(wav[start : start + size]))
        start += size
    return [*pieces, stream.finish()]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9_000), min_size=1, max_size=30),
    fade=st.sampled_from([0.001, 0.02, 0.1]),
    context=st.sampled_from([0.1, 0.25, 1.0]),
)
def test_a_marker_that_changes_nothing_gives_the_samples_themselves(sizes, fade, context):
    wav = np.random.default_rng(0).standard_normal(sum(sizes)).astype(np.float32)
    marker, given_so_far = Scaled(), 0
    stream = WatermarkStream(marker, RATE, context=context, fade=fade)
    out = []
    for size in sizes:
        out.append(stream.push(wav[given_so_far : given_so_far + size]))
        given_so_far += size
        waiting = given_so_far - sum(map(len, out))
        assert waiting < max(2 * fade, fade + 0.04) * RATE + 2 * HOP + 1
    np.testing.assert_array_equal(np.concatenate([*out, stream.finish()]), wav)
    assert bool(marker.seen) is (len(wav) > 0)


@pytest.mark.parametrize("length", [1, 239, 767, 1000, 50_001])
@pytest.mark.parametrize("size", [1, 100, 2_400, 60_000])
def test_every_sample_is_marked(length, size):
    wav = recording(length / RATE)
    out = np.concatenate(marked_pieces(Scaled(2.0), wav, size))
    np.testing.assert_allclose(out, 2 * wav, rtol=1e-6)


def test_calls_see_the_past_on_one_grid():
    marker, wav = Scaled(), recording(3.0)
    marked_pieces(marker, wav, 5_000, 333)
    assert len(marker.seen) > 10
    done = 0
    for signal in marker.seen[:-1]:
        start = next(s for s in range(0, len(wav), HOP) if np.array_equal(wav[s : s + len(signal)], signal))
        assert start <= max(0, done - CONTEXT) < start + HOP
        done = start + len(signal) // HOP * HOP - FADE
    assert not marker.seen[-1][-2 * HOP :].any()


def test_two_calls_that_disagree_are_faded_into_each_other():
    wav = np.ones(3 * RATE, np.float32)
    pieces = marked_pieces(Scaled(1.0, 1.5), wav, 12_000)
    out = np.concatenate(pieces)
    assert out.min() == 1.0 and out.max() == 1.5
    assert np.abs(np.diff(out)).max() < 0.5 * np.pi / 2 / FADE * 1.01
    assert all(np.ptp(piece[FADE:]) == 0 for piece in pieces if len(piece) > FADE)


def test_a_stream_can_begin_again():
    stream, wav = WatermarkStream(Scaled(), RATE), recording(0.5)
    for part in (wav, wav[::-1].copy()):
        np.testing.assert_array_equal(np.concatenate([stream.push(part), stream.finish()]), part)
    assert len(stream.finish()) == 0


def test_the_callers_array_may_be_used_again():
    marker, buffer = Scaled(), np.full(1_000, 0.5, np.float32)
    stream = WatermarkStream(marker, RATE)
    stream.push(buffer)
    buffer[:] = 0
    assert (stream.finish() == 0.5).all()


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 44_100])
def test_perth_finds_the_mark(rate):
    wav, marker = recording(4.0, rate), PerthWatermarker()
    stream = WatermarkStream(marker, rate)
    size = rate // 5
    pieces = [*(stream.push(wav[i : i + size]) for i in range(0, len(wav), size)), stream.finish()]
    out = np.concatenate(pieces)
    assert len(out) == len(wav) and sum(map(bool, map(len, pieces))) > 15
    assert read_watermark(wav, rate) < 0.1 and read_watermark(out, rate) > 0.9
    for start in range(0, len(out) - rate, rate // 2):
        assert read_watermark(out[start : start + rate], rate) > 0.5


def test_the_mark_is_that_of_the_whole():
    wav, marker = recording(4.0), PerthWatermarker()
    mark = marker.apply_watermark(wav, RATE) - wav
    at_once, in_pieces = (np.concatenate(marked_pieces(marker, wav, size)) - wav for size in (len(wav), 4_800))
    before_end = slice(0, len(wav) - RATE // 5)  # whole marking mirrors the end, where the stream has zeros
    assert np.linalg.norm((at_once - mark)[before_end]) < 1e-3 * np.linalg.norm(mark)
    assert np.linalg.norm(in_pieces - mark) < 0.2 * np.linalg.norm(mark)


def clicks(wav: np.ndarray, seams: np.ndarray) -> Measure:
    return verify_prosody_continuity(np.split(wav, seams), RATE).click


def test_no_seam_is_heard_thanks_to_the_fade():
    """At both ends of each fade, against the same places of the whole marking, and against pieces joined hard."""
    noise = np.random.default_rng(0).standard_normal(8 * RATE)
    wav = (recording(8.0) - 0.0027 * noise).astype(np.float32)  # most of its noise taken away: small steps show
    marker = PerthWatermarker()
    pieces, hard = (marked_pieces(marker, wav, 4_800, fade=fade) for fade in (FADE / RATE, 1 / RATE))
    starts, hard_starts = (np.cumsum([len(piece) for piece in parts[:-1]]) for parts in (pieces, hard))
    whole, out, hard_out = marker.apply_watermark(wav, RATE), np.concatenate(pieces), np.concatenate(hard)
    for seams in (starts, starts[:-1] + FADE):
        found, usual = clicks(out, seams), clicks(whole, seams)
        assert found.seams.count >= 39 and found.seams.p95 < 1.05 * usual.seams.p95 and found.above <= usual.above + 2
    assert clicks(hard_out, hard_starts).above > 30


def test_perth_refusing_leaves_the_samples_for_another_try():
    class Refusing(Scaled):
        def apply_watermark(self, signal: np.ndarray, sample_rate: int) -> np.ndarray:
            if not self.seen:
                self.seen.append(signal)
                raise RuntimeError("no weights")
            return super().apply_watermark(signal, sample_rate)

    stream, wav = WatermarkStream(Refusing(), RATE), recording(1.0)
    with pytest.raises(RuntimeError, match="no weights"):
        stream.push(wav)
    np.testing.assert_array_equal(stream.finish(), wav)


def test_a_marker_that_loses_samples():
    class Short(Scaled):
        def apply_watermark(self, signal: np.ndarray, sample_rate: int) -> np.ndarray:
            return signal[: len(signal) // 2]

    with pytest.raises(RuntimeError, match=r"made \(12000,\) of \(24000,\) samples"):
        WatermarkStream(Short(), RATE).push(recording(1.0))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 5), np.float32), r"shape \(1, 5\); give one channel"),
        (np.zeros(5, np.int16), "int16; give floats"),
    ],
)
def test_bad_samples(samples, message):
    with pytest.raises(ValueError, match=message):
        WatermarkStream(Scaled(), RATE).push(samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, "sample_rate must be at least 1000 Hz, got 0"),
        ({"fade": 0.0}, "fade must be above 0 and at most 1 second, got 0.0"),
        ({"fade": float("nan")}, "fade must be above 0 and at most 1 second, got nan"),
        ({"context": 0.01}, r"context must be from the fade \(0.02\) to 10 seconds, got 0.01"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        WatermarkStream(Scaled(), **{"sample_rate": RATE, **options})
