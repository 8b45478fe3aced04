"""Loudness of a recording as ITU-R BS.1770-4 measures it, and a recording made as loud as wanted.

Owns: the K-weighting, the gates, the gain. Does not know: what the recording is for. One channel.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK_SECONDS, STEP_SECONDS = 0.4, 0.1
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, and LU below what passes the first
OFFSET = -0.691  # makes a 997 Hz sine of full scale -3.01 LUFS
MAX_GAIN = 20.0  # dB, of speech that is brought to a loudness
MAX_PEAK = 0.95  # of full scale, before it is marked
TAIL_SECONDS = 1.0  # the filters have died away after it

# pyloudnorm's values, which the published Turbo model measures with.
SHELF_HZ, SHELF_DB, SHELF_Q = 1500.0, 4.0, 1 / math.sqrt(2)
HIGH_PASS_HZ, HIGH_PASS_Q = 38.0, 0.5


def integrated_loudness(wav: np.ndarray, rate: int) -> float:
    """LUFS of ``wav``, (L,) at ``rate`` Hz; -inf if it is silent or shorter than a block of 0.4 s."""
    block, num_samples = BLOCK_SECONDS * rate, len(wav)
    num_blocks = round((num_samples / rate - BLOCK_SECONDS) / STEP_SECONDS) + 1
    if num_samples < block:
        return -math.inf
    energy = np.concatenate([[0.0], np.cumsum(_k_weighted(wav, rate) ** 2)])
    starts = np.arange(num_blocks) * STEP_SECONDS
    ends = np.minimum(((starts + BLOCK_SECONDS) * rate).astype(int), num_samples)
    power = (energy[ends] - energy[(starts * rate).astype(int)]) / block
    power = power[power > 10 ** ((ABSOLUTE_GATE - OFFSET) / 10)]
    if not len(power):
        return -math.inf
    power = power[power > power.mean() * 10 ** (RELATIVE_GATE / 10)]
    return OFFSET + 10 * math.log10(power.mean())


def normalize_loudness(wav: np.ndarray, rate: int, target: float = -27.0) -> np.ndarray:
    """``wav``, float32 (L,), at ``target`` LUFS; as it is where `integrated_loudness` has no number for it."""
    loudness = integrated_loudness(wav, rate)
    return wav if math.isinf(loudness) else wav * np.float32(10 ** ((target - loudness) / 20))


def levelled(wav: np.ndarray, rate: int, target: float) -> np.ndarray:
    """Speech ``wav``, float32 (L,), at ``target`` LUFS, as far as `MAX_GAIN` up or down and `MAX_PEAK` allow.

    What is shorter than a block is measured as if it were repeated; silence stays as it is.
    """
    block = math.ceil(BLOCK_SECONDS * rate)
    loudness = integrated_loudness(np.resize(wav, max(block, len(wav))), rate) if len(wav) else -math.inf
    if math.isinf(loudness):
        return wav
    decibels = min(max(target - loudness, -MAX_GAIN), MAX_GAIN)
    gain = min(10 ** (decibels / 20), MAX_PEAK / float(np.abs(wav).max()))
    return wav * np.float32(gain)


def _k_weighted(wav: np.ndarray, rate: int) -> np.ndarray:
    """The weighting's two filters, by their response over frequency."""
    length = len(wav) + round(TAIL_SECONDS * rate)
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(length))  # one sample later
    response = _response(_shelf(rate), z) * _response(_high_pass(rate), z)
    return np.fft.irfft(np.fft.rfft(wav.astype(np.float64), length) * response, length)[: len(wav)]


def _response(biquad: tuple[np.ndarray, np.ndarray], z: np.ndarray) -> np.ndarray:
    numerator, denominator = (np.polynomial.polynomial.polyval(z, part) for part in biquad)
    return numerator / denominator


def _angle(hertz: float, q: float, rate: int) -> tuple[float, float]:
    w = 2 * math.pi * hertz / rate
    return math.cos(w), math.sin(w) / (2 * q)


def _shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """High shelf of R. Bristow-Johnson's audio EQ cookbook: coefficients of z^0, z^-1, z^-2, above and below."""
    cos, alpha = _angle(SHELF_HZ, SHELF_Q, rate)
    gain = 10 ** (SHELF_DB / 40)
    slope = 2 * math.sqrt(gain) * alpha
    up, down = gain + 1, gain - 1
    above = gain * np.array([up + down * cos + slope, -2 * (down + up * cos), up + down * cos - slope])
    return above, np.array([up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope])


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """High pass of the same cookbook."""
    cos, alpha = _angle(HIGH_PASS_HZ, HIGH_PASS_Q, rate)
    return (1 + cos) / 2 * np.array([1.0, -2.0, 1.0]), np.array([1 + alpha, -2 * cos, 1 - alpha])
