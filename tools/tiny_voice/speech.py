"""What a teacher gives for a text, whichever program it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PHONES = (
    "pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy",
    "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip


@dataclass(frozen=True)
class Speech:
    """Phones and their ends, and the recording or, where the text was not spoken aloud, the pitch of the phones."""

    phones: list[str]  # of PHONES; the first and the last are pau
    ends: np.ndarray  # (P,) float32, seconds from the start
    samples: np.ndarray | None  # (N,) int16
    rate: int  # Hz
    pitch: np.ndarray | None = None  # (P,) float32 log Hz, NaN where unvoiced
