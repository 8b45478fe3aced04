"""What an independent recogniser hears: words, by pocketsphinx with its own English model; distance of sequences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

RECOGNISER_RATE = 16_000


@cache
def _decoder() -> Any:
    from pocketsphinx import Decoder

    return Decoder(samprate=RECOGNISER_RATE, loglevel="FATAL")


def recognize(wav: np.ndarray, sample_rate: int) -> list[str]:
    """Words heard in mono float audio (N,)."""
    import librosa

    wav = librosa.resample(np.asarray(wav, np.float32), orig_sr=sample_rate, target_sr=RECOGNISER_RATE)
    quiet = np.zeros(RECOGNISER_RATE // 4, np.float32)
    samples = np.concatenate([quiet, 0.7 * wav / max(1e-6, float(np.abs(wav).max())), quiet])
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((samples * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return words_of(hypothesis.hypstr if hypothesis else "")


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def edit_distance(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of insertions, deletions and substitutions."""
    row = list(range(len(heard) + 1))
    for i, one in enumerate(wanted, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (one != other))
    return row[-1]
