"""The speech tokens of the embedded voice: two phones a token, one per 20 ms mel frame.

Owns: the mapping between (phone, pitch level) symbols and the 6,561 FSQ codes. Does not know: audio, models.

A speech token has eight ternary digits; the first four name what sounds in its first 20 ms, the last four in its
second. Of each four, one digit is the pitch level for vowels. So speech tokens say what is spoken and how it is
intoned, not who speaks, and S3Gen's two mel frames per speech token get one symbol each.
"""

from __future__ import annotations

import numpy as np

SECONDS_PER_FRAME = 0.02
DIGITS_PER_SYMBOL = 4
NUM_SYMBOLS = 3**DIGITS_PER_SYMBOL
LOW, MID, HIGH = 0, 1, 2
PITCH_STEP = 0.55  # standard deviations of log F0 from the voice's mean to a low or high level
SILENCE = "pau"

# Neighbours sound alike, so a digit read wrongly costs little.
VOWELS = ("iy", "ih", "ey", "eh", "ae", "ay", "aa", "aw", "ao", "oy", "ow", "uh", "uw", "ah", "ax", "er")
# Three consonants share a base; the pitch digit tells them apart.
CONSONANTS = (
    ("pau", "hh", "y"),
    ("p", "t", "k"),
    ("b", "d", "g"),
    ("f", "th", "sh"),
    ("v", "dh", "zh"),
    ("s", "z", "ch"),
    ("m", "n", "ng"),
    ("l", "r", "w"),
    ("jh",),
)


def _symbol_table() -> dict[tuple[str, int], int]:
    table = {(vowel, level): 3 * base + level for base, vowel in enumerate(VOWELS) for level in (LOW, MID, HIGH)}
    for base, group in enumerate(CONSONANTS, start=len(VOWELS)):
        table |= {(phone, level): 3 * base + slot for slot, phone in enumerate(group) for level in (LOW, MID, HIGH)}
    return table


SYMBOLS = _symbol_table()
SYMBOL_IDS = np.array(sorted(set(SYMBOLS.values())))
SYMBOL_NAMES = {symbol: phone for (phone, _), symbol in SYMBOLS.items()}


def pitch_level(z: float, spread: float = 1.0) -> int:
    """Level of a phone whose log F0 lies ``z`` standard deviations above its voice's mean; NaN (unvoiced) is MID."""
    scaled = z * spread
    return HIGH if scaled > PITCH_STEP else LOW if scaled < -PITCH_STEP else MID


def frame_symbols(phones: list[str], ends: np.ndarray, pitch: np.ndarray, *, spread: float = 1.0) -> np.ndarray:
    """Symbol of each 20 ms frame, by the phone at its middle.

    Args:
        phones: names, one per phone.
        ends: (P,) end of each phone in seconds.
        pitch: (P,) log F0 in standard deviations from the voice's mean, NaN where unvoiced.
        spread: factor on ``pitch``: above 1 is livelier.

    Returns:
        (2 * tokens,) symbols; an odd last frame is repeated so that speech tokens are whole.
    """
    symbols = np.array([SYMBOLS[p, pitch_level(z, spread)] for p, z in zip(phones, pitch, strict=True)])
    middles = (np.arange(int(ends[-1] / SECONDS_PER_FRAME + 1e-6)) + 0.5) * SECONDS_PER_FRAME
    frames = symbols[np.minimum(np.searchsorted(ends, middles, side="right"), len(phones) - 1)]
    return np.append(frames, frames[-1]) if len(frames) % 2 else frames


def to_speech_tokens(symbols: np.ndarray) -> np.ndarray:
    """(2 N,) symbols to (N,) speech tokens."""
    pairs = symbols.reshape(-1, 2)
    return pairs[:, 0] + NUM_SYMBOLS * pairs[:, 1]


def to_symbols(speech_tokens: np.ndarray) -> np.ndarray:
    """(N,) speech tokens to (2 N,) symbols."""
    return np.stack([speech_tokens % NUM_SYMBOLS, speech_tokens // NUM_SYMBOLS], axis=1).reshape(-1)


def digits(speech_tokens: np.ndarray) -> np.ndarray:
    """(..., ) speech tokens to (..., 8) ternary digits 0, 1, 2, least significant first."""
    return speech_tokens[..., None] // 3 ** np.arange(2 * DIGITS_PER_SYMBOL) % 3
