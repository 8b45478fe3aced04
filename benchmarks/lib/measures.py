"""How far one utterance is from another: tokens, spectrum, melody, speaker; and how sure a mean is.

Owns: the measures that several benchmarks report, and their alignment in time. Does not know: models, caches, texts.

Two utterances of the same words differ in timing, so spectrum and melody are compared along the path that warps one
onto the other (dynamic time warping over log-mel frames). Where both are the same audio the path is the diagonal and
every distance 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import librosa
import numpy as np

RATE = 16_000  # Hz, of everything here
HOP = 320  # samples, 20 ms: half a speech token
FFT = 1024
NUM_MELS = 80
FLOOR_DB = -80.0  # of full scale: silence of different depth is the same silence
F0_RANGE = (60.0, 400.0)  # Hz
F0_STEP = 0.1  # semitones
RESAMPLES = 2000


@dataclass(frozen=True)
class Utterance:
    """Mono float audio (N,) at `RATE`; what is derived of it is computed once."""

    wav: np.ndarray

    @classmethod
    def of(cls, wav: np.ndarray, sample_rate: int) -> Utterance:
        """Raises ValueError if there is no sample."""
        if not len(wav):
            raise ValueError("the utterance has no samples; measure one that was spoken")
        return cls(librosa.resample(np.asarray(wav, np.float32), orig_sr=sample_rate, target_sr=RATE))

    @property
    def seconds(self) -> float:
        return len(self.wav) / RATE

    @cached_property
    def log_mel(self) -> np.ndarray:
        """(frames, NUM_MELS), in dB of full scale."""
        sizes = {"sr": RATE, "n_fft": FFT, "hop_length": HOP, "n_mels": NUM_MELS}
        power = librosa.feature.melspectrogram(y=self.wav, **sizes)  # (mels, frames)
        return np.maximum(10 * np.log10(np.maximum(power, 1e-12)), FLOOR_DB).T

    @cached_property
    def f0(self) -> np.ndarray:
        """(frames,) in Hz, NaN where unvoiced: pYIN (Mauch and Dixon 2014)."""
        low, high = F0_RANGE
        sizes = {"sr": RATE, "frame_length": FFT, "hop_length": HOP, "resolution": F0_STEP}
        f0, _, _ = librosa.pyin(self.wav, fmin=low, fmax=high, **sizes)
        return f0


def warp(one: Utterance, other: Utterance) -> np.ndarray:
    """Frames of both that belong together, (K, 2), ascending."""
    if np.array_equal(one.log_mel, other.log_mel):
        return np.repeat(np.arange(len(one.log_mel))[:, None], 2, axis=1)
    _, path = librosa.sequence.dtw(one.log_mel.T, other.log_mel.T, metric="euclidean")
    return path[::-1]


def log_mel_distance(one: Utterance, other: Utterance, path: np.ndarray) -> float:
    """Root mean square difference of log-mel frames along ``path``, in dB, averaged over frames."""
    difference = one.log_mel[path[:, 0]] - other.log_mel[path[:, 1]]
    return float(np.sqrt(np.square(difference).mean(1)).mean())


def f0_rmse(one: Utterance, other: Utterance, path: np.ndarray) -> float:
    """Root mean square difference of F0 in semitones where both are voiced along ``path``; NaN if nowhere."""
    pairs = np.log2(one.f0[path[:, 0]] / other.f0[path[:, 1]])
    pairs = pairs[~np.isnan(pairs)]
    return float(12 * np.sqrt(np.square(pairs).mean())) if len(pairs) else float("nan")


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two speaker embeddings (E,), 1 for the same direction."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def leading_agreement(exact: Sequence[int], drawn: Sequence[int]) -> float:
    """Share of ``exact`` that ``drawn`` repeats before it first differs."""
    same = 0
    for wanted, got in zip(exact, drawn, strict=False):
        if wanted != got:
            break
        same += 1
    return same / len(exact)


def position_agreement(exact: Sequence[int], drawn: Sequence[int]) -> float:
    """Share of places with the same token in both, of the longer one's."""
    return sum(a == b for a, b in zip(exact, drawn, strict=False)) / max(len(exact), len(drawn))


def interval(groups: Sequence[np.ndarray], figure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Bounds of the 95% confidence interval of ``figure``, by bootstrap over whole groups (Efron 1979).

    ``groups``: arrays of measurements that are not independent of one another, as of one sentence in several voices,
    each (measurements, ...). ``figure`` maps their concatenation to a number. The draw is the same every time.

    Raises:
        ValueError: fewer than two groups.
    """
    if len(groups) < 2:
        raise ValueError(f"an interval needs at least 2 groups, got {len(groups)}; measure more sentences")
    rng = np.random.default_rng(0)
    draws = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    figures = [figure(np.concatenate([groups[i] for i in draw])) for draw in draws]
    low, high = np.nanpercentile(figures, (2.5, 97.5))
    return float(low), float(high)
