"""Speed and loudness of whole speech: of each utterance, in one text and in a batch; never in a stream."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from chatterbox.audio.loudness import integrated_loudness
from chatterbox.config import SpeechOptions
from chatterbox.tts import ChatterboxTTS
from chatterbox.watermark.perth import read_watermark

RATE = 24_000
PARTS = ("Hello there, how are you?", "I am very well today.")
LUFS = -24.0


@pytest.fixture(scope="module")
def tiny() -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained("cpu", model="tiny")


def whole(tts: ChatterboxTTS, text: str = "[pause:2s]".join(PARTS), **options) -> Tensor:
    return tts.generate(text, **{"seed": 1, "watermark": False, **options})


def parts(audio: Tensor, begin: int) -> list[np.ndarray]:
    """What was said before and behind a pause of two seconds."""
    return [audio[0, :begin].numpy(), audio[0, begin + 2 * RATE :].numpy()]


def test_each_utterance_is_as_loud_and_the_pause_is_as_it_was(tiny):
    plain, level, begin = whole(tiny), whole(tiny, loudness=LUFS), whole(tiny, PARTS[0]).shape[1]
    before, after = ([integrated_loudness(part, RATE) for part in parts(one, begin)] for one in (plain, level))
    assert abs(before[0] - before[1]) > 0.3, "the test needs parts that differ"
    assert after == pytest.approx([LUFS, LUFS], abs=0.05)
    assert level.shape == plain.shape and not level[0, begin + RATE // 100 : begin + 2 * RATE].any()
    for left, right in zip(parts(plain, begin), parts(level, begin), strict=True):
        there = np.abs(left[RATE // 50 :]) > 1e-3
        gains = right[RATE // 50 :][there] / left[RATE // 50 :][there]
        assert np.allclose(gains, gains[0], rtol=1e-4), "one gain an utterance"


def test_none_is_as_it_was(tiny):
    assert torch.equal(whole(tiny), whole(tiny, loudness=None)) and SpeechOptions().loudness is None


def test_a_batch_has_it_too(tiny):
    texts = ["[pause:2s]".join(PARTS), PARTS[1]]
    audios = tiny.generate_batch(texts, seed=1, watermark=False, loudness=LUFS)
    assert torch.equal(audios[0], whole(tiny, loudness=LUFS))
    assert integrated_loudness(audios[1][0].numpy(), RATE) == pytest.approx(LUFS, abs=0.05)


def test_a_replaced_inference_has_it_too(tiny, monkeypatch):
    expected, own = whole(tiny, loudness=LUFS), tiny.t3.inference
    monkeypatch.setattr(tiny.t3, "inference", lambda *arguments, **options: own(*arguments, **options))
    assert torch.equal(whole(tiny, loudness=LUFS), expected)


def test_it_is_marked_behind_the_gain(tiny):
    audio = whole(tiny, watermark=True, loudness=LUFS)
    assert read_watermark(audio[0].numpy(), RATE) > 0.9


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_the_mark_does_not_lift_it_over_full_scale(tiny, speed):
    text, options = "Hello there, this machine can talk.", {"seed": 2, "loudness": 0.0, "speed": speed}
    audio = tiny.generate(text, **options)
    assert 0.9 < audio.abs().max() <= 1.0 and read_watermark(audio[0].numpy(), RATE) > 0.9
    assert whole(tiny, text, **options).abs().max() <= 0.951


def test_a_stream_refuses_it_at_once(tiny):
    with pytest.raises(
        ValueError, match=r"^loudness -24 cannot be had in a stream: .* leave it out, or speak it whole .*$"
    ):
        tiny.generate_stream(PARTS[0], loudness=LUFS)


@pytest.mark.parametrize("value", [1.0, -71, "loud", float("nan"), True])
def test_what_is_no_loudness_is_one_line(tiny, value):
    with pytest.raises(ValueError, match="loudness must be a number from -70 to 0, got"):
        whole(tiny, loudness=value)


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_utterances_are_stretched_to_the_sample_and_pauses_are_not(tiny, speed):
    plain, audio, first = whole(tiny), whole(tiny, speed=speed), whole(tiny, PARTS[0])
    begin, pause = round(first.shape[1] / speed), 2 * RATE
    assert audio.shape[1] == begin + pause + round((plain.shape[1] - first.shape[1] - pause) / speed)
    assert torch.equal(audio[:, :begin], whole(tiny, PARTS[0], speed=speed))
    assert not audio[0, begin + RATE // 100 : begin + pause].any() and audio[0, begin + pause :].abs().max() > 0.05


def test_a_speed_of_one_is_as_it_was_and_needs_no_library(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_stretch", None)
    for speed in (1.0, 1, None):
        assert torch.equal(whole(tiny), whole(tiny, speed=speed))
    with pytest.raises(RuntimeError, match=r"^another speed needs python-stretch, which is not installed: pip install"):
        whole(tiny, speed=1.1)


def test_a_batch_is_as_fast_and_a_replaced_inference_too(tiny, monkeypatch):
    expected, own = whole(tiny, speed=1.25), tiny.t3.inference
    [audio] = tiny.generate_batch(["[pause:2s]".join(PARTS)], seed=1, watermark=False, speed=1.25)
    assert torch.equal(audio, expected)
    monkeypatch.setattr(tiny.t3, "inference", lambda *arguments, **options: own(*arguments, **options))
    assert torch.equal(whole(tiny, speed=1.25), expected)


def test_fast_speech_is_marked_and_as_loud_as_asked_for(tiny):
    audio = whole(tiny, PARTS[0], speed=1.5, loudness=LUFS)
    assert integrated_loudness(audio[0].numpy(), RATE) == pytest.approx(LUFS, abs=0.05)
    assert read_watermark(whole(tiny, speed=1.5, watermark=True)[0].numpy(), RATE) > 0.9


def test_a_stream_refuses_another_speed(tiny):
    with pytest.raises(ValueError, match=r"^speed 1\.5 cannot be had in a stream: .*leave it out, or speak it whole"):
        tiny.generate_stream(PARTS[0], speed=1.5)


@pytest.mark.parametrize("value", [0, 0.49, 2.01, -1, "fast", float("nan"), True])
def test_what_is_no_speed_is_one_line(tiny, value):
    with pytest.raises(ValueError, match=r"speed must be a number from 0\.5 to 2, got"):
        whole(tiny, speed=value)
