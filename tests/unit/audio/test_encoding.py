"""Audio formats while samples arrive: whole, early, and as players read them."""

from __future__ import annotations

import io
import random
import wave

import av
import numpy as np
import pytest

from chatterbox.audio import encoding
from chatterbox.audio.encoding import FORMATS, EncodingError, available, encoder_of, to_pcm

RATE = 24_000
CODECS = [name for name, one in FORMATS.items() if one.container is not None]
DELAY_MS = {"mp3": 60, "opus": 20, "aac": 100, "flac": 20, "wav": 20, "pcm": 20}  # before the first bytes
GAP_MS = {"mp3": 40, "opus": 20, "aac": 80, "flac": 20, "wav": 20, "pcm": 20}  # between two of them
PADDING_MS = {"mp3": 75, "aac": 90}  # that a codec puts around what it was given


def tone(seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def encoded(name: str, samples: np.ndarray, cuts: list[int]) -> bytes:
    encoder = encoder_of(name, RATE)
    pieces = np.split(samples, cuts)
    return b"".join([*map(encoder.push, pieces), encoder.finish()])


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(data)) as container:
        frames = [(frame.to_ndarray().reshape(-1), frame.sample_rate) for frame in container.decode(audio=0)]
    return np.concatenate([samples for samples, _ in frames]), frames[0][1]


@pytest.mark.parametrize("name", CODECS)
def test_all_of_it_is_there_however_it_was_cut(name: str) -> None:
    samples, rng = tone(1.7), random.Random(1)
    bodies = {encoded(name, samples, sorted(rng.sample(range(len(samples)), num))) for num in (0, 3, 40)}
    heard, rate = decoded(bodies.pop())
    assert 1.7 <= len(heard) / rate <= 1.7 + PADDING_MS.get(name, 0) / 1000
    spectrum = np.abs(np.fft.rfft(heard[rate // 4 : rate]))
    assert abs(np.argmax(spectrum) / 0.75 - 440) < 2
    for other in bodies:
        assert len(decoded(other)[0]) / rate <= 1.7 + PADDING_MS.get(name, 0) / 1000 + 0.03


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_held_back_for_longer_than_its_frames_need(name: str) -> None:
    encoder, gaps, since = encoder_of(name, RATE), [], 0
    for piece in np.split(tone(2), 100):
        since += 20
        if encoder.push(piece):
            gaps.append(since)
            since = 0
    encoder.close()
    assert gaps[0] <= DELAY_MS[name] and max(gaps[1:]) <= GAP_MS[name]


@pytest.mark.parametrize("name", CODECS)
def test_joined_bodies_decode_as_one(name: str) -> None:
    """LibreChat puts the answers to the parts of a text one behind the other."""
    body = encoded(name, tone(1), [])
    one, both = decoded(body)[0], decoded(body + body)[0]
    assert len(both) == pytest.approx(2 * len(one), rel=0.06)


def test_wav_has_a_header_of_unknown_length_and_the_samples() -> None:
    samples = tone(0.5)
    data = encoded("wav", samples, [100, 5000])
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
    assert data[44:] == encoded("pcm", samples, [7]) == to_pcm(samples).tobytes()


def test_samples_beyond_full_scale_are_cut() -> None:
    assert to_pcm(np.array([0.0, 1.0, -1.0, 3.0, -3.0], np.float32)).tolist() == [0, 32767, -32767, 32767, -32767]


@pytest.mark.parametrize("name", FORMATS)
def test_no_samples_are_a_body_all_the_same(name: str) -> None:
    encoder = encoder_of(name, RATE)
    data = encoder.finish() + encoder.finish()
    encoder.close()
    assert bool(data) == (name != "pcm")
    if name in CODECS:
        assert len(decoded(data)[0]) > 0


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncodingError, match="format must be one of mp3, opus, aac, flac, wav, pcm, got 'ogg'"):
        encoder_of("ogg", RATE)
    assert available() == list(FORMATS)
    monkeypatch.setattr(encoding, "has_codecs", lambda: False)
    assert available() == ["wav", "pcm"]
    with pytest.raises(EncodingError, match=r"format mp3 needs PyAV: pip install 'chatterbox-kvcache\[serve\]'"):
        encoder_of("mp3", RATE)
    assert encoder_of("wav", RATE).finish()
