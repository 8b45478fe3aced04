"""What becomes of an utterance's waveform once all of it is there, before it is marked: its speed, its loudness.

Owns: which options ask for that, in which order, and that a stream cannot. Does not know: how either is done.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chatterbox.audio.loudness import levelled
from chatterbox.audio.tempo import at_speed, require_library
from chatterbox.config import SpeechOptions
from chatterbox.models.s3gen import S3GEN_SR

Reshape = Callable[[np.ndarray], np.ndarray]  # (L,) float32 at 24 kHz to such
REMEDY = "leave it out, or speak it whole (generate, generate_batch, chatterbox say)"


def reshape_of(options: SpeechOptions) -> Reshape | None:
    """What a whole utterance goes through; None: nothing. Raises RuntimeError if a library is not installed."""
    speed, loudness = options.speed, options.loudness
    if speed != 1.0:
        require_library()
    elif loudness is None:
        return None

    def reshape(wav: np.ndarray) -> np.ndarray:
        wav = wav if speed == 1.0 else at_speed(wav, S3GEN_SR, speed)
        return wav if loudness is None else levelled(wav, S3GEN_SR, loudness)

    return reshape


def within_full_scale(samples: np.ndarray) -> np.ndarray:
    """What was reshaped and then marked: the mark adds up to a tenth to a peak, and may have passed full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples if peak <= 1.0 else samples / np.float32(peak)


def check_streamed(options: SpeechOptions) -> None:
    """Raise ValueError for what is of whole speech alone: a stream hands audio out before all of it is there."""
    if options.loudness is not None:
        raise ValueError(
            f"loudness {options.loudness:g} cannot be had in a stream: it is measured over whole utterances; {REMEDY}"
        )
    if options.speed != 1.0:
        raise ValueError(f"speed {options.speed:g} cannot be had in a stream: it is of whole utterances; {REMEDY}")
