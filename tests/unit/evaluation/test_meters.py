"""One way to call every meter of speech: what they need, their sums and intervals, the table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chatterbox.evaluation import meters
from chatterbox.evaluation.meters import METERS, Figure, Score, Spoken, at_rate, interval, measure, scores_of, table

QUIET = np.zeros(16_000, np.float32)


def test_phone_errors_are_a_ratio_of_sums():
    spoken = [
        Spoken("a", QUIET, phones=(["m", "ay"], ["m", "ay"])),
        Spoken("b", QUIET, phones=(["k", "iy", "p", "s"], ["k", "ih", "p"])),
    ]
    figure = measure(spoken, ["phone_errors"])["phone_errors"]
    assert figure.value == 2 / 6 and figure.num == 2
    assert 0.0 <= figure.low <= figure.value <= figure.high <= 0.5


def test_an_interval_holds_the_value_and_narrows_with_more_utterances():
    def width(count: int) -> float:
        figure = interval([Score(float(i % 2), 1.0) for i in range(count)])
        assert figure.low <= figure.value == 0.5 <= figure.high
        return figure.high - figure.low

    assert 0.15 < width(100) < 0.25 and 0.05 < width(1000) < 0.08  # 2 * 1.96 * 0.5 / sqrt(count)
    assert interval([Score(1, 4)] * 5) == Figure(0.25, 0.25, 0.25, 5)
    assert math.isnan(interval([Score(0, 0)]).value)


def test_numbers_are_compared_in_words(monkeypatch):
    monkeypatch.setattr(meters, "_whisper", lambda: Hearing(" We bought 25 kettles, on May 3rd."))
    one = Spoken("We bought twenty-five kettles on May third!", QUIET)
    assert measure([one], ["whisper"])["whisper"].value == 0.0
    assert measure([Spoken("We bought five kettles.", QUIET)], ["whisper"])["whisper"].value == 1.0


class Hearing:
    def __init__(self, text: str) -> None:
        self.text = text

    def transcribe(self, wav: np.ndarray, **options: object) -> tuple[list[Hearing], None]:
        assert wav.dtype == np.float32 and len(wav) >= 16_000
        return [self], None


def test_meters_whose_needs_are_not_met_are_left_out_or_refused(monkeypatch):
    for name in METERS:
        monkeypatch.setitem(METERS, name, meters.Meter(lambda _: Score(1, 1), name, True, METERS[name].needs))
    assert set(measure([Spoken("a", QUIET)])) == {"whisper", "pocketsphinx", "dnsmos", "dnsmos_p808", "distillmos"}
    assert set(measure([Spoken("a", QUIET, QUIET, QUIET, ([], []))])) == set(METERS)
    with pytest.raises(ValueError, match=r"'speaker' compares with 'speaker', which an utterance lacks"):
        scores_of([Spoken("a", QUIET)], ["speaker"])
    with pytest.raises(ValueError, match=r"meter 'mos' is unknown: use one of phone_errors, "):
        scores_of([Spoken("a", QUIET)], ["mos"])
    with pytest.raises(ValueError, match="nothing to measure"):
        measure([])


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros(0), r"wav must be mono audio \(N,\) of at least one sample, got the shape \(0,\)"),
        (np.zeros((1, 8)), r"got the shape \(1, 8\)"),
        (np.array([0.0, np.nan]), "wav must be finite"),
    ],
)
def test_audio_that_is_none(wav, message):
    with pytest.raises(ValueError, match=message):
        Spoken("a", wav)
    with pytest.raises(ValueError, match=message):
        at_rate(wav, 24_000)
    with pytest.raises(ValueError, match="teacher"):
        Spoken("a", QUIET, teacher=wav[..., :0])


@pytest.mark.parametrize("rate", [0, -1, 24_000.5, None])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match="rate must be a whole number of samples a second from 1"):
        at_rate(QUIET, rate)


def test_a_meter_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "speechmos.dnsmos", None)
    with pytest.raises(ModuleNotFoundError, match=r"make quality-env"):
        measure([Spoken("a", QUIET)], ["dnsmos"])


def test_table():
    made = table({"exact": {"whisper": Figure(0.1, 0.05, 0.2, 40)}, "sliding": {"distillmos": Figure(2, 1.9, 2.1, 40)}})
    assert made.splitlines() == [
        "| meter | better | exact | sliding |",
        "| --- | --- | --- | --- |",
        "| word error rate, whisper-base | lower | 0.100 [0.050, 0.200] |  |",
        "| DistillMOS | higher |  | 2.000 [1.900, 2.100] |",
    ]


def test_audio_of_any_rate():
    tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000) * 1.5
    heard = at_rate(tone, 24_000)
    assert heard.dtype == np.float32 and len(heard) == 16_000 and np.abs(heard).max() <= 1.0
    assert np.array_equal(at_rate(heard, 16_000), heard)
