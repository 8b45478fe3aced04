"""Figures of what listeners of a server hear.

Owns: percentiles, differences of turns, when a body begins to sound, gaps of readers. Does not know: HTTP, processes.
"""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import av
import numpy as np

from benchmarks.lib.heard import RATE, Heard

WIDTH = 2  # bytes of a sample
Row = dict[str, Any]


def ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def percentile(values: Sequence[float], percent: float) -> float:
    """Raises ValueError: there is none."""
    if not values:
        raise ValueError("no percentile of nothing; measure something")
    return float(np.percentile(values, percent))


def difference_ms(a: Sequence[float], b: Sequence[float]) -> Row:
    """Median of ``a`` minus that of ``b``, seconds of the same turns, with the quartiles of the turns' differences.

    Raises:
        ValueError: they are not of the same turns, or there are fewer than two.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a difference needs both in two turns or more, got {len(a)} and {len(b)}")
    low, _, high = statistics.quantiles([one - other for one, other in zip(a, b, strict=True)], n=4)
    return {"value": ms(statistics.median(a) - statistics.median(b)), "interval": [ms(low), ms(high)]}


def heard(times: Sequence[float], pieces: Sequence[bytes]) -> Heard:
    """A body of PCM as its listener hears it; a sample that is cut by a piece's end is of the next."""
    received = [0, *itertools.accumulate(map(len, pieces))]
    lasts = (after // WIDTH - before // WIDTH for before, after in itertools.pairwise(received))
    return Heard(tuple(times), tuple(samples / RATE for samples in lasts))


def real_time_factor(one: Heard) -> float:
    """Seconds until the last of it was there, over those that it plays."""
    return one.arrived[-1] / one.audio


def first_audible(times: Sequence[float], pieces: Sequence[bytes], form: str) -> float:
    """When a body had come so far that a decoder makes samples of it. Raises ValueError: never."""
    for place, seconds in enumerate(times):
        if _sounds(b"".join(pieces[: place + 1]), form):
            return seconds
    raise ValueError(f"{len(pieces)} pieces of {form} have no audio")


def _sounds(data: bytes, form: str) -> bool:
    if form == "pcm":
        return len(data) >= WIDTH
    try:
        with av.open(io.BytesIO(data)) as container:
            return any(frame.samples for frame in container.decode(audio=0))
    except (av.FFmpegError, IndexError):  # too little for a header, or for a frame
        return False


def gaps(times: Sequence[float]) -> list[float]:
    """Seconds between moments that follow each other."""
    return [after - before for before, after in itertools.pairwise(times)]
