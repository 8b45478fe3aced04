"""What a listener hears from moment to moment: level, pitch, syllables, clicks, measured at given samples.

Owns: the signal processing. Does not know: chunks, seams, reports. Mono float32 (N,) on -1..1.
"""

from __future__ import annotations

import numpy as np

_LEVEL_SECONDS, _SILENCE_DB = 0.02, -200.0
_FRAME_SECONDS, _VOICED, _NEARLY_BEST = 0.04, 0.6, 0.9  # F0: frame, least correlation, what a shorter period may lack
_HOP_SECONDS, _SMOOTH_HOPS, _DIP_DB = 0.01, 7, 2.0  # intensity: what it is taken every and over, dips beside a nucleus
_CLICK_SECONDS, _AROUND_SECONDS = 0.001, 0.02  # half widths
_FAINTEST = 1e-4  # -80 dB of full scale: nobody hears that where speech, at -20 dB, has its usual 65 dB SPL
_BATCH = 128


def levels(wav: np.ndarray, places: np.ndarray, rate: int, side: int) -> np.ndarray:
    """Level in dB of full scale of the 20 ms before (``side`` -1) or after (1) each place; -200 where none is left."""
    length = round(_LEVEL_SECONDS * rate)
    starts = np.maximum(places - length, 0) if side < 0 else places
    ends = places if side < 0 else places + length
    power = [np.square(wav[a:b], dtype=np.float64).mean() if b > a else 0.0 for a, b in zip(starts, ends, strict=True)]
    return _decibels(np.asarray(power))


def loud_level(wav: np.ndarray, rate: int) -> float:
    """Level in dB that all but the loudest twentieth of the recording stays below."""
    return float(np.percentile(_decibels(_hop_power(wav, rate)), 95))


def pitch(wav: np.ndarray, starts: np.ndarray, rate: int, limits: tuple[float, float]) -> np.ndarray:
    """F0 in Hz, within ``limits``, of the 40 ms after each start; NaN where not voiced or not inside ``wav``.

    The normalised cross-correlation of D. Talkin (A robust algorithm for pitch tracking, 1995), without its tracking:
    the shortest period that correlates nearly as well as the best.
    """
    length = round(_FRAME_SECONDS * rate)
    shortest, longest = max(2, int(rate / limits[1])), int(rate / limits[0]) + 1
    found = np.full(len(starts), np.nan)
    usable = np.flatnonzero((starts >= 0) & (starts + length <= len(wav)))
    for rows in np.split(usable, range(_BATCH, len(usable), _BATCH)):
        frames = wav[starts[rows, None] + np.arange(length)].astype(np.float64)  # (B, length)
        likeness = _self_likeness(frames - frames.mean(axis=1, keepdims=True), longest + 1)
        found[rows] = rate / _period(likeness, shortest, longest)
    return found


def syllable_nuclei(wav: np.ndarray, rate: int, limits: tuple[float, float], quiet: float) -> np.ndarray:
    """Samples where syllables are loudest: voiced peaks of intensity above ``quiet`` dB between dips of 2 dB.

    N. de Jong and T. Wempe, Praat script to detect syllable nuclei and measure speech rate automatically, 2009.
    """
    hop, frame = round(_HOP_SECONDS * rate), round(_FRAME_SECONDS * rate)
    smooth = np.hanning(_SMOOTH_HOPS + 2)[1:-1]
    intensity = _decibels(np.convolve(_hop_power(wav, rate), smooth / smooth.sum(), mode="same"))
    peaks = np.asarray(_peaks_between_dips(intensity, quiet), dtype=np.int64) * hop + hop // 2
    return peaks[~np.isnan(pitch(wav, np.clip(peaks - frame // 2, 0, max(len(wav) - frame, 0)), rate, limits))]


def click_sizes(wav: np.ndarray, places: np.ndarray, rate: int) -> np.ndarray:
    """Largest prediction residual within 1 ms of each place over the residual's root mean square in 20 ms around.

    What a linear predictor does not expect is how clicks are found in recordings (S. Godsill and P. Rayner, Digital
    audio restoration, 1998, chapter 5). As a ratio it has no level, but for a floor of -80 dB below which nothing is
    heard; the predictor takes the spectrum out. NaN where too little is left to predict from.
    """
    order, near = 2 + int(rate // 1000), max(1, round(_CLICK_SECONDS * rate))
    reach = near + round(_AROUND_SECONDS * rate)
    sizes = np.full(len(places), np.nan)
    for index, place in enumerate(places):
        start = max(0, place - reach - order)
        window = wav[start : place + reach].astype(np.float64)
        centre = place - start - order  # the place, in the residual
        if len(window) < 6 * order or centre < 2 * near or len(window) - order - centre < 2 * near:
            continue
        residual = np.abs(_residual(window, order))
        inner = slice(centre - near, centre + near)
        around = np.delete(residual, inner)
        sizes[index] = residual[inner].max() / (np.sqrt(np.mean(around**2)) + _FAINTEST)
    return sizes


def _residual(window: np.ndarray, order: int) -> np.ndarray:
    """Error (N - order,) of the linear predictor with the least squared error over ``window`` (N,)."""
    past = np.lib.stride_tricks.sliding_window_view(window[:-1], order)  # (N - order, order)
    gram = past.T @ past
    gram[np.diag_indices(order)] += 1e-9 * np.trace(gram) + 1e-12
    now = window[order:]
    return now - past @ np.linalg.solve(gram, past.T @ now)


def _self_likeness(frames: np.ndarray, longest: int) -> np.ndarray:
    """Cosine (B, longest + 1) of each frame's first part with the part ``lag`` samples later; 0 in silence."""
    part = frames.shape[1] - longest
    size = 1 << (frames.shape[1] + part - 1).bit_length()
    spectrum = np.fft.rfft(frames, size) * np.conj(np.fft.rfft(frames[:, :part], size))
    product = np.fft.irfft(spectrum, size)[:, : longest + 1]
    total = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    energy = total[:, part:] - total[:, : longest + 1]  # of the part at each lag
    norm = np.sqrt(np.maximum(energy * energy[:, :1], 0))
    return np.divide(product, norm, out=np.zeros_like(product), where=norm > 1e-10 * part)


def _period(likeness: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    """Period in samples (B,) at the first peak nearly as high as the highest, between samples; NaN if not voiced."""
    middle = likeness[:, shortest : longest + 1]
    left, right = likeness[:, shortest - 1 : longest], likeness[:, shortest + 1 : longest + 2]
    heights = np.where((middle >= left) & (middle > right), middle, -1.0)
    best = heights.max(axis=1, keepdims=True)
    first = (heights >= _NEARLY_BEST * best).argmax(axis=1)
    rows = np.arange(len(likeness))
    a, b, c = left[rows, first], middle[rows, first], right[rows, first]
    bend = a - 2 * b + c
    offset = np.divide(a - c, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
    return np.where(best[:, 0] >= _VOICED, shortest + first + offset, np.nan)


def _peaks_between_dips(intensity: np.ndarray, quiet: float) -> list[int]:
    """Indices of maxima above ``quiet`` that rise by the least dip from what is before, and fall by it after."""
    peaks: list[int] = []
    low, high, rising = np.inf, -1, False
    for index, level in enumerate(intensity):
        if rising:
            if level > intensity[high]:
                high = index
            elif level < intensity[high] - _DIP_DB:
                rising, low = False, level
                if intensity[high] > quiet:
                    peaks.append(high)
        elif level > low + _DIP_DB:
            rising, high = True, index
        else:
            low = min(low, level)
    return peaks


def _hop_power(wav: np.ndarray, rate: int) -> np.ndarray:
    """Mean square (hops,) of every 10 ms, the last one maybe shorter."""
    starts = np.arange(0, len(wav), round(_HOP_SECONDS * rate))
    counts = np.diff(np.append(starts, len(wav)))
    return np.add.reduceat(np.square(wav), starts, dtype=np.float64) / counts


def _decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 10 ** (_SILENCE_DB / 10)))
