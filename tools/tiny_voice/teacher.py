"""Teacher speech for the embedded voice: programs say the corpus, and training keeps what it needs of it.

Owns the choice of program for a voice, a fast F0 estimate, and the shards that training reads. Knows nothing of models
or of how the sentences are made.

A shard is one `shard-NNNNN.npz`, compressed where it has no audio, of up to 1,000 utterances (N), their phones (P) and
samples (S) laid end to end:

    text         (N,) str        voice         (N,) uint8, index into VOICES
    num_samples  (N,) int32      at the rate, also where the audio itself is not kept
    rate         (N,) int32      Hz
    phone_start  (N+1,) int64    utterance i owns phones phone_start[i]:phone_start[i+1]
    phone        (P,) uint8      index into PHONES; every utterance begins and ends with pau
    end          (P,) float32    seconds from the utterance's start to the phone's end, in steps of TIME_STEP
    pitch        (P,) float32    median log F0 (log Hz) of the phone's voiced frames in PITCH_STEPs; NaN where none
    audio_start  (N+1,) int64    only with audio: utterance i owns samples audio_start[i]:audio_start[i+1]
    audio        (S,) int16      only with audio
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import librosa
import numpy as np

from tools.tiny_voice import festival, flite, kokoro
from tools.tiny_voice.speech import PHONES, Speech

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000  # of `speak` and of pitch
VOICES = (*flite.VOICES, *festival.VOICES, *kokoro.VOICES)
_PROGRAMS = {voice: program for program in (flite, festival, kokoro) for voice in program.VOICES}
_PHONE_ID = {phone: i for i, phone in enumerate(PHONES)}
TIME_STEP, PITCH_STEP = 2.0**-9, 2.0**-7  # seconds and log Hz; what shards keep, as it takes less room in them
_F0_MIN, _F0_MAX, _HOP, _FRAME = 60.0, 400.0, 160, 640  # Hz, Hz, samples, samples
_VOICED = 0.6  # least normalised autocorrelation of a voiced frame
_OUTLIER = 0.6  # of log F0 from the utterance's median
_SILENCE = 0.01  # of the utterance's loudest frame, in amplitude


def speak(text: str, voice: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Says `text` with one of VOICES.

    Returns:
        The waveform, float32 in [-1, 1] at SAMPLE_RATE; the phones; and the second at which each phone ends, float32.

    Raises:
        ValueError: unknown voice. RuntimeError: the voice's program is missing or failed.
    """
    speech = next(iter(say([text], voice)))
    return at_rate(speech, SAMPLE_RATE), speech.phones, speech.ends


def say(texts: Sequence[str], voice: str, *, aloud: bool = True) -> Iterator[Speech]:
    """Each text in turn, as its program gives it; not ``aloud`` if that is faster. Errors as of :func:`speak`."""
    if voice not in _PROGRAMS:
        raise ValueError(f"voice {voice!r} is unknown: use one of {', '.join(VOICES)}")
    if voice in kokoro.VOICES:
        return kokoro.say(texts, voice, aloud=aloud)
    return _PROGRAMS[voice].say(texts, voice)


def at_rate(speech: Speech, rate: int) -> np.ndarray:
    """(N,) float32 samples at ``rate`` Hz."""
    assert speech.samples is not None
    wav = speech.samples.astype(np.float32) / 32768
    return wav if speech.rate == rate else librosa.resample(wav, orig_sr=speech.rate, target_sr=rate)


def track_pitch(wav: np.ndarray) -> np.ndarray:
    """F0 in Hz every 10 ms, frame i centred on sample 160 i; NaN where unvoiced.

    Normalised autocorrelation over 40 ms frames, 60 to 400 Hz; the shortest lag that is nearly as good as the best
    wins, which avoids octave errors downwards.
    """
    padded = np.pad(wav.astype(np.float32), _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]  # (F, 640)
    frames = frames - frames.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(frames, 2 * _FRAME, axis=1)
    lags = np.arange(int(SAMPLE_RATE / _F0_MAX) - 1, int(SAMPLE_RATE / _F0_MIN) + 2)
    products = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, axis=1)[:, lags]  # (F, L)
    energy = np.cumsum(np.square(frames), axis=1)
    head = energy[:, _FRAME - 1 - lags]
    tail = energy[:, -1:] - energy[:, lags - 1]
    score = products / np.sqrt(head * tail + 1e-9)
    inner = score[:, 1:-1]
    is_peak = (inner >= score[:, :-2]) & (inner >= score[:, 2:])
    peaks = np.where(is_peak, inner, -1.0)
    best = peaks.max(axis=1, keepdims=True)
    pick = np.argmax(peaks >= 0.9 * best, axis=1) + 1
    row = np.arange(len(score))
    left, middle, right = score[row, pick - 1], score[row, pick], score[row, pick + 1]
    shift = 0.5 * (left - right) / np.minimum(left - 2 * middle + right, -1e-6)
    loud = energy[:, -1] > _SILENCE**2 * energy[:, -1].max(initial=1e-9)
    return np.where(loud & (best[:, 0] > _VOICED), SAMPLE_RATE / (lags[pick] + np.clip(shift, -0.5, 0.5)), np.nan)


def phone_pitch(wav: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Median log F0 of the voiced frames of each phone, float32 (P,); NaN for phones without any.

    Frames nearly an octave from the utterance's median are errors (bursts and frication of kal16): unvoiced.
    """
    log_f0 = np.log(track_pitch(wav))
    voiced = ~np.isnan(log_f0)
    if voiced.any():
        voiced &= np.abs(log_f0 - np.median(log_f0[voiced])) < _OUTLIER
    owner = np.searchsorted(ends, np.arange(len(log_f0)) * (_HOP / SAMPLE_RATE), side="right")
    pitch = np.full(len(ends), np.nan, dtype=np.float32)
    for i in np.unique(owner[voiced & (owner < len(ends))]):
        pitch[i] = np.median(log_f0[voiced & (owner == i)])
    return pitch


def rotate(sentences: Sequence[str], voices_each: int, voices: Sequence[str] = VOICES) -> list[tuple[str, str]]:
    """(text, voice) pairs: each sentence with `voices_each` of the voices, all such groups of them equally often."""
    groups = list(combinations(voices, voices_each))
    return [(text, voice) for i, text in enumerate(sentences) for voice in groups[i % len(groups)]]


def build(
    out_dir: str | Path,
    utterances: Sequence[tuple[str, str]],
    *,
    with_audio: bool = False,
    num_processes: int = 2,
    shard_size: int = 1000,
) -> list[Path]:
    """Speaks all (text, voice) pairs into shards under `out_dir`, in order, and returns the shards' paths.

    Shards appear whole or not at all, and those already there are not made again, so an interrupted build resumes.

    Raises:
        ValueError: `out_dir` holds shards of other utterances.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    plan = hashlib.sha256(repr((list(utterances), with_audio, shard_size)).encode()).hexdigest()
    plan_file = out_dir / "plan.sha256"
    if plan_file.exists() and plan_file.read_text() != plan:
        raise ValueError(f"{out_dir} holds shards of another plan: choose an empty folder or remove it")
    plan_file.write_text(plan)
    parts = [utterances[i : i + shard_size] for i in range(0, len(utterances), shard_size)]
    paths = [out_dir / f"shard-{i:05d}.npz" for i in range(len(parts))]
    missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
    with ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        for path in pool.map(partial(_build_shard, with_audio=with_audio), *zip(*missing, strict=True)):
            logger.info("wrote %s", path)
    return paths


def _build_shard(path: Path, utterances: Sequence[tuple[str, str]], *, with_audio: bool) -> Path:
    phones, ends, pitches, lengths, rates, audio = [], [], [], [], [], []
    for speech in _in_order(utterances, aloud=with_audio):
        phones.append([_PHONE_ID[name] for name in speech.phones])
        ends.append(speech.ends)
        heard = speech.pitch
        pitches.append(phone_pitch(at_rate(speech, SAMPLE_RATE), speech.ends) if heard is None else heard)
        lengths.append(round(float(speech.ends[-1]) * speech.rate))
        rates.append(speech.rate)
        if with_audio:
            assert speech.samples is not None
            audio.append(speech.samples)
    time, hertz = (np.concatenate(parts) for parts in (ends, pitches))
    arrays: dict[str, Any] = {
        "text": np.array([text for text, _ in utterances]),
        "voice": np.array([VOICES.index(voice) for _, voice in utterances], dtype=np.uint8),
        "num_samples": np.array(lengths, dtype=np.int32),
        "rate": np.array(rates, dtype=np.int32),
        "phone_start": np.cumsum([0, *map(len, phones)], dtype=np.int64),
        "phone": np.concatenate(phones).astype(np.uint8),
        "end": np.round(time / TIME_STEP).astype(np.float32) * np.float32(TIME_STEP),
        "pitch": np.round(hertz / PITCH_STEP).astype(np.float32) * np.float32(PITCH_STEP),
    }
    if with_audio:
        arrays["audio_start"] = np.cumsum([0, *map(len, audio)], dtype=np.int64)
        arrays["audio"] = np.concatenate(audio)
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    with partial_path.open("wb") as file:
        (np.savez if with_audio else np.savez_compressed)(file, **arrays)
    partial_path.replace(path)
    return path


def _in_order(utterances: Sequence[tuple[str, str]], *, aloud: bool) -> list[Speech]:
    """What each (text, voice) sounds like; a voice's program gets all of its texts at once."""
    made: dict[int, Speech] = {}
    for voice in dict.fromkeys(voice for _, voice in utterances):
        places = [i for i, (_, other) in enumerate(utterances) if other == voice]
        made |= zip(places, say([utterances[i][0] for i in places], voice, aloud=aloud), strict=True)
    return [made[i] for i in range(len(utterances))]


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence of a shard; array fields are as in the module's description, `audio` None if not kept."""

    text: str
    voice: int
    num_samples: int
    rate: int
    phones: np.ndarray
    ends: np.ndarray
    pitch: np.ndarray
    audio: np.ndarray | None


def read_shard(path: str | Path) -> Iterator[Utterance]:
    """The utterances of one shard, in order."""
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files}
    for i, text in enumerate(data["text"]):
        span = slice(data["phone_start"][i], data["phone_start"][i + 1])
        audio = data["audio"][data["audio_start"][i] : data["audio_start"][i + 1]] if "audio" in data else None
        phones, ends, pitch = data["phone"][span], data["end"][span], data["pitch"][span]
        voice, num_samples, rate = (int(data[key][i]) for key in ("voice", "num_samples", "rate"))
        yield Utterance(str(text), voice, num_samples, rate, phones, ends, pitch, audio)
