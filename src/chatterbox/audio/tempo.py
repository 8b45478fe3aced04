"""Speech that is faster or slower at its own pitch, by Signalsmith Stretch (python-stretch, extra `speed`).

Owns: the length to the sample, no clipping, the error where the library is missing. Does not know: what is spoken.

librosa's phase vocoder, which is there anyway, makes speech hollow and quieter.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from chatterbox.audio.loudness import MAX_PEAK

SEED = 1  # the library draws phases
MISSING = "pip install 'chatterbox-kvcache[speed]', or leave speed at 1"


def require_library() -> Any:
    """The library. Raises RuntimeError, with the remedy, where it is not installed."""
    try:
        return importlib.import_module("python_stretch").Signalsmith
    except ImportError:
        raise RuntimeError(f"another speed needs python-stretch, which is not installed: {MISSING}") from None


def at_speed(wav: np.ndarray, rate: int, speed: float) -> np.ndarray:
    """``wav``, float32 (L,) at ``rate`` Hz, as round(L / speed) samples; the same bits each time. Raises as
    `require_library`.
    """
    stretch = require_library().Stretch(SEED)
    stretch.preset(1, rate)
    stretch.setTimeFactor(speed)
    stretched: np.ndarray = stretch.process(np.ascontiguousarray(wav[None], np.float32))[0]
    length = round(len(wav) / speed)
    stretched = np.pad(stretched[:length], (0, max(0, length - len(stretched))))
    peak, highest = (float(np.abs(one).max(initial=0.0)) for one in (stretched, wav))
    most = max(MAX_PEAK, highest)  # it may have been louder before
    return stretched if peak <= most else stretched * np.float32(most / peak)
