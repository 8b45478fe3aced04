"""What becomes of an utterance's waveform once all of it is there, before it is marked: its loudness.

Owns: which options ask for that, and that a stream cannot. Does not know: how loudness is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chatterbox.audio.loudness import levelled
from chatterbox.config import SpeechOptions
from chatterbox.models.s3gen import S3GEN_SR

Reshape = Callable[[np.ndarray], np.ndarray]  # (L,) float32 at 24 kHz to such


def reshape_of(options: SpeechOptions) -> Reshape | None:
    """What a whole utterance goes through; None: nothing."""
    loudness = options.loudness
    return None if loudness is None else lambda wav: levelled(wav, S3GEN_SR, loudness)


def check_streamed(options: SpeechOptions) -> None:
    """Raise ValueError for what is of whole speech alone: a stream hands audio out before all of it is there."""
    if options.loudness is not None:
        raise ValueError(
            f"loudness {options.loudness:g} cannot be had in a stream: it is measured over whole utterances; "
            "leave it out, or use generate or generate_batch"
        )
