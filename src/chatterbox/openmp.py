"""OpenMP's idle threads, given back by the thread that owns them.

Owns: finding the runtime that torch has loaded, one call of it. Does not know: who computes when.

Every thread that has run a parallel operation of torch keeps a team of threads for its next one. GNU's runtime counts
them all: once there are more than cores, every team sleeps at every barrier instead of waiting a little, which slows
small operations down although no more than one team works at a time. So a thread that waits for another one's work
gives its team back; its next parallel operation makes a new one.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

SOFT = 1  # `omp_pause_soft`: settings such as the number of threads stay
MAPS = Path("/proc/self/maps")
_RUNTIME = re.compile(r"\s(/\S*/libgomp[^/\s]*\.so\S*)$", re.MULTILINE)


def release_idle_threads() -> None:
    """Give back the calling thread's team, if it has one; not from within a parallel region. Never raises."""
    if "torch" in sys.modules:
        _pause()(SOFT)


@cache
def _pause() -> Callable[[int], int]:
    """`omp_pause_resource_all` (OpenMP 5.0) of the runtime in this process; does nothing where there is none."""
    try:
        paths = dict.fromkeys(_RUNTIME.findall(MAPS.read_text()))
    except OSError:
        paths = {}
    for path in paths:
        try:
            pause: Callable[[int], int] = ctypes.CDLL(path).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
        return pause
    return lambda kind: -1
