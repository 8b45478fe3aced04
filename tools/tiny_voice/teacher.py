"""Teacher speech for the embedded voice: the program `flite` says the corpus, and training keeps what it needs of it.

Owns the call of the `flite` program, the phone inventory, a fast F0 estimate, and the shards that training reads. Knows
nothing of models or of how the sentences are made.

A shard is one `shard-NNNNN.npz` of up to 1,000 utterances (N), their phones (P) and samples (S) laid end to end:

    text         (N,) str        voice         (N,) uint8, index into VOICES
    num_samples  (N,) int32      at SAMPLE_RATE, also where the audio itself is not kept
    phone_start  (N+1,) int64    utterance i owns phones phone_start[i]:phone_start[i+1]
    phone        (P,) uint8      index into PHONES; every utterance begins and ends with pau
    end          (P,) float32    seconds from the utterance's start to the phone's end
    pitch        (P,) float32    median log F0 (log Hz) of the phone's voiced frames; NaN where it has none
    audio_start  (N+1,) int64    only with audio: utterance i owns samples audio_start[i]:audio_start[i+1]
    audio        (S,) int16      only with audio
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import tempfile
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
VOICES = ("slt", "rms", "awb", "kal16")
PHONES = (
    "pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy",
    "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip
_PHONE_ID = {phone: i for i, phone in enumerate(PHONES)}
_F0_MIN, _F0_MAX, _HOP, _FRAME = 60.0, 400.0, 160, 640  # Hz, Hz, samples, samples
_VOICED = 0.6  # least normalised autocorrelation of a voiced frame
_OUTLIER = 0.6  # of log F0 from the utterance's median
_SILENCE = 0.01  # of the utterance's loudest frame, in amplitude


def speak(text: str, voice: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Says `text` with one of VOICES.

    Returns:
        The waveform, float32 in [-1, 1) at SAMPLE_RATE; the phones; and the second at which each phone ends, float32.

    Raises:
        ValueError: unknown voice. RuntimeError: flite is missing or failed.
    """
    if voice not in VOICES:
        raise ValueError(f"voice {voice!r} is unknown: use one of {', '.join(VOICES)}")
    samples, phones, ends = _run_flite(text, voice)
    return samples.astype(np.float32) / 32768, phones, ends


def _run_flite(text: str, voice: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.wav")
        command = ["flite", "-voice", voice, "-psdur", "-o", path, "-t", text]
        try:
            report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except FileNotFoundError as error:
            raise RuntimeError("the program flite is missing: apt-get install flite") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"flite failed on {text!r}: {error.stderr.strip()}") from error
        with wave.open(path) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SAMPLE_RATE, 1, 2):
                raise RuntimeError(f"flite voice {voice!r} must write 16 kHz mono 16-bit: use Debian's flite")
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    pairs = [item.rsplit(":", 1) for item in report.split()]
    if not pairs:
        raise RuntimeError(f"flite reported no phones for {text!r}")
    ends = np.minimum(np.array([end for _, end in pairs], dtype=np.float32), len(samples) / SAMPLE_RATE)
    ends[-1] = len(samples) / SAMPLE_RATE  # kal16 announces 0.12 s of final silence that it does not write
    return samples, [phone for phone, _ in pairs], ends


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


def rotate(sentences: Sequence[str], voices_each: int) -> list[tuple[str, str]]:
    """(text, voice) pairs: each sentence with `voices_each` voices, all such groups of voices equally often."""
    groups = list(combinations(VOICES, voices_each))
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
    phones, ends, pitches, audio = [], [], [], []
    for text, voice in utterances:
        samples, names, end = _run_flite(text, voice)
        phones.append([_PHONE_ID[name] for name in names])
        ends.append(end)
        pitches.append(phone_pitch(samples.astype(np.float32) / 32768, end))
        audio.append(samples)
    arrays: dict[str, Any] = {
        "text": np.array([text for text, _ in utterances]),
        "voice": np.array([VOICES.index(voice) for _, voice in utterances], dtype=np.uint8),
        "num_samples": np.array([len(samples) for samples in audio], dtype=np.int32),
        "phone_start": np.cumsum([0, *map(len, phones)], dtype=np.int64),
        "phone": np.concatenate(phones).astype(np.uint8),
        "end": np.concatenate(ends),
        "pitch": np.concatenate(pitches),
    }
    if with_audio:
        arrays["audio_start"] = np.cumsum([0, *map(len, audio)], dtype=np.int64)
        arrays["audio"] = np.concatenate(audio)
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    with partial_path.open("wb") as file:
        np.savez(file, **arrays)
    partial_path.replace(path)
    return path


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence of a shard; array fields are as in the module's description, `audio` None if not kept."""

    text: str
    voice: int
    num_samples: int
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
        yield Utterance(str(text), int(data["voice"][i]), int(data["num_samples"][i]), phones, ends, pitch, audio)
