"""Teacher speech in memory: what the stages draw from.

Owns: reading shards, pitch statistics, speech tokens of an utterance, audio at another speed. Does not know: losses,
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from scipy.signal import medfilt
from torch import Tensor

from tools.tiny_voice.speech import PHONES
from tools.tiny_voice.speech_tokens import SECONDS_PER_FRAME, SILENCE, VOWELS, frame_symbols, to_speech_tokens
from tools.tiny_voice.teacher import SAMPLE_RATE, VOICES, read_shard, track_pitch
from tools.tiny_voice.tiny import (
    CHARACTERS,
    DEFAULT_SHARE,
    DEFAULT_VOICE,
    NATURAL_SHARE,
    NATURAL_SPEED,
    SPECIAL_TOKENS,
    SPEEDS,
)

LEAD_SECONDS = 0.10  # silence kept before and after an utterance
TAIL_SECONDS = 0.14
TRACK_RATE = 100  # pitch estimates a second
SMOOTHED = 5  # of them, by their median
CHARACTER_IDS = {c: i for i, c in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}


def encode_text(text: str) -> list[int]:
    """Character ids as the shipped tokenizer gives them (it lower-cases; no start and stop here)."""
    unknown, space = CHARACTER_IDS["[UNK]"], CHARACTER_IDS["[SPACE]"]
    return [space if c == " " else CHARACTER_IDS.get(c, unknown) for c in text.lower()]


@dataclass
class Utterance:
    """ends: (P,) seconds; pitch: (P,) log F0, NaN where unvoiced; audio: (N,) int16 at ``rate`` Hz or None."""

    text: str
    voice: int
    phones: list[str]
    ends: np.ndarray
    pitch: np.ndarray
    audio: np.ndarray | None
    rate: int = SAMPLE_RATE

    def trimmed(self) -> tuple[list[str], np.ndarray, np.ndarray, float, float]:
        """Phones, ends and pitch with the outer pauses cut short, and the seconds kept of the recording (from, to)."""
        starts = np.concatenate([[0.0], self.ends[:-1]])
        spoken = [i for i, p in enumerate(self.phones) if p != SILENCE]
        begin = max(0.0, starts[spoken[0]] - LEAD_SECONDS)
        end = min(self.ends[-1], self.ends[spoken[-1]] + TAIL_SECONDS)
        keep = [i for i in range(len(self.phones)) if self.ends[i] > begin and starts[i] < end]
        ends = np.minimum(self.ends[keep], end) - begin
        return [self.phones[i] for i in keep], ends, self.pitch[keep], begin, end


@dataclass(frozen=True)
class PitchScale:
    """Median and deviation of the log F0 of vowels, per voice; NaN where it says none."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, utterances: list[Utterance]) -> PitchScale:
        vowels: list[list[float]] = [[] for _ in VOICES]
        for u in utterances:
            vowels[u.voice] += [
                f for phone, f in zip(u.phones, u.pitch, strict=True) if phone in VOWELS and not np.isnan(f)
            ]
        mean, deviation = (np.array([f(v) if v else np.nan for v in vowels]) for f in (np.median, np.std))
        return cls(mean, deviation)

    def standardize(self, pitch: np.ndarray, voice: int) -> np.ndarray:
        return (pitch - self.mean[voice]) / self.deviation[voice]


def load(folder: Path) -> list[Utterance]:
    """All utterances of a teacher folder, in the order of their shards."""
    return [
        Utterance(u.text, u.voice, [PHONES[i] for i in u.phones], u.ends, u.pitch, u.audio, u.rate)
        for shard in sorted(folder.glob("shard-*.npz"))
        for u in read_shard(shard)
    ]


def trimmed_symbols(
    utterance: Utterance,
    scale: PitchScale,
    *,
    stretch: float = 1.0,
    spread: float = 1.0,
    rhythm: float = 0.0,
    rng: np.random.Generator | None = None,
    even: bool = False,
) -> np.ndarray:
    """(2 * tokens,) symbols of the trimmed utterance, ``stretch`` times as long, its pitch range ``spread`` times.

    ``rhythm`` is the deviation of the logarithm of a factor that ``rng`` draws for the duration of each phone. With
    ``even`` every phone is one speech token long.
    """
    phones, ends, pitch, _, _ = utterance.trimmed()
    if even:
        ends = 2 * SECONDS_PER_FRAME * np.arange(1, len(phones) + 1)
    if rng is not None:
        lengths = np.diff(ends, prepend=0.0) * np.exp(rhythm * rng.standard_normal(len(ends)))
        ends = np.cumsum(lengths) * (ends[-1] / lengths.sum())
    return frame_symbols(phones, ends * stretch, scale.standardize(pitch, utterance.voice), spread=spread)


def draw_speed(rng: np.random.Generator) -> int:
    """Index into SPEEDS, mostly that of the natural speed."""
    return NATURAL_SPEED if rng.random() < NATURAL_SHARE else int(rng.integers(len(SPEEDS)))


class Utterances:
    """Text and speech tokens, sorted by length so that a batch can be drawn from neighbours."""

    def __init__(self, utterances: list[Utterance], scale: PitchScale) -> None:
        self._items = sorted(utterances, key=lambda u: u.ends[-1])
        self._scale = scale
        self._by_voice = [[i for i, u in enumerate(self._items) if u.voice == v] for v in range(len(VOICES))]

    def __len__(self) -> int:
        return len(self._items)

    def voice(self, index: int) -> int:
        return self._items[index].voice

    def text_ids(self, index: int) -> list[int]:
        return encode_text(self._items[index].text)

    def join_texts(self, texts: list[list[int]]) -> list[int]:
        space = [CHARACTER_IDS["[SPACE]"]]
        return [token for k, text in enumerate(texts) for token in (space * (k > 0) + text)]

    def approximate_len(self, index: int, *, even: bool = False) -> int:
        item = self._items[index]
        return len(item.text) + (len(item.phones) if even else int(25 * item.ends[-1])) + 10

    def speech_tokens(self, index: int, **changes: Any) -> np.ndarray:
        """(N,) speech tokens at 25 Hz, as spoken but for ``changes``, the options of :func:`trimmed_symbols`."""
        return to_speech_tokens(trimmed_symbols(self._items[index], self._scale, **changes))

    def near(self, anchor: int, size: int, rng: np.random.Generator) -> list[int]:
        """``anchor`` and ``size - 1`` others of about its length."""
        low = int(np.clip(anchor - 4 * size, 0, max(0, len(self) - 8 * size)))
        window = np.arange(low, min(len(self), low + 8 * size))
        others = rng.choice(window, size=min(size - 1, len(window)), replace=False)
        return [anchor, *(int(i) for i in others)]

    def same_voice(self, voice: int, count: int, rng: np.random.Generator) -> list[int]:
        """Further utterances of a voice, of the shorter half so that joined sequences stay bounded."""
        pool = self._by_voice[voice]
        return [pool[int(i)] for i in rng.integers(0, max(1, len(pool) // 2), size=count)]

    def prompt(self, voice: int, length: int, rng: np.random.Generator, **changes: Any) -> np.ndarray:
        """(length,) speech tokens of other utterances of a voice; ``changes`` as of :meth:`speech_tokens`."""
        pool, speech_tokens = self._by_voice[voice], np.zeros(0, dtype=np.int64)
        while len(speech_tokens) < length:
            other = self.speech_tokens(pool[int(rng.integers(len(pool)))], **changes)
            speech_tokens = np.concatenate([speech_tokens, other])
        return speech_tokens[:length]


class SpeakerBank:
    """Voice-encoder embeddings of recordings of each voice, natural speed preferred, as T3 sees them."""

    def __init__(self, embeddings: Tensor) -> None:
        """``embeddings``: (voices, speeds, recordings, D)."""
        self._embeddings = embeddings

    def draw(self, voice: int, rng: np.random.Generator) -> Tensor:
        return self.at(voice, draw_speed(rng), rng)

    def at(self, voice: int, speed: int, rng: np.random.Generator) -> Tensor:
        return self._embeddings[voice, speed, int(rng.integers(self._embeddings.shape[2]))]


class Recordings:
    """Utterances with audio, at any of the training speeds."""

    def __init__(self, utterances: list[Utterance], scale: PitchScale) -> None:
        self._items, self._scale = utterances, scale
        self._tracks: dict[int, np.ndarray] = {}
        self.by_voice = [[i for i, u in enumerate(utterances) if u.voice == v] for v in range(len(VOICES))]

    def __len__(self) -> int:
        return len(self._items)

    def voice(self, index: int) -> int:
        return self._items[index].voice

    def audio(self, index: int, speed: int, sample_rate: int) -> np.ndarray:
        """(N,) float32 of the trimmed recording at SPEEDS[speed]: shorter, higher and brighter above 1."""
        item = self._items[index]
        _, _, _, begin, end = item.trimmed()
        wav = self._samples(index)[int(begin * item.rate) : int(end * item.rate)]
        origin = round(item.rate * SPEEDS[speed])
        if origin == sample_rate:
            return wav
        return librosa.resample(wav, orig_sr=origin, target_sr=sample_rate, res_type="soxr_mq")

    def symbols(self, index: int, speed: int) -> np.ndarray:
        """(2 * tokens,) symbols, one per 20 ms of that audio."""
        return trimmed_symbols(self._items[index], self._scale, stretch=1 / SPEEDS[speed])

    def speech_tokens(self, index: int, speed: int) -> Tensor:
        return torch.from_numpy(to_speech_tokens(self.symbols(index, speed)))

    def f0(self, index: int, speed: int, num_frames: int) -> np.ndarray:
        """(num_frames,) float32 F0 in Hz at the middle of each 20 ms frame of that audio, 0 where unvoiced."""
        if index not in self._tracks:
            wav, rate = self._samples(index), self._items[index].rate
            if rate != SAMPLE_RATE:
                wav = librosa.resample(wav, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_mq")
            self._tracks[index] = medfilt(np.nan_to_num(track_pitch(wav)), SMOOTHED)
        track, (_, _, _, begin, _) = self._tracks[index], self._items[index].trimmed()
        seconds = begin + (np.arange(num_frames) + 0.5) * SECONDS_PER_FRAME * SPEEDS[speed]
        nearest = np.minimum(np.rint(seconds * TRACK_RATE).astype(int), len(track) - 1)
        return (track[nearest] * SPEEDS[speed]).astype(np.float32)

    def _samples(self, index: int) -> np.ndarray:
        """(N,) float32 of the whole recording."""
        audio = self._items[index].audio
        assert audio is not None  # text alone is for `Utterances`
        return audio.astype(np.float32) / 32768.0

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """A random recording, of the default voice oftener than of each other, and a speed, mostly the natural one."""
        speed = draw_speed(rng)
        default = self.by_voice[VOICES.index(DEFAULT_VOICE)]
        pool = default if default and rng.random() < DEFAULT_SHARE else range(len(self))
        return int(pool[int(rng.integers(len(pool)))]), speed
