"""Memory that a request has freed, given back to the system.

Owns: the one call. Does not know: who freed it.

glibc keeps freed memory for the process, and what it keeps grows with the longest utterance so far and the threads that
spoke. Handing it back after a request costs milliseconds and holds a long-lived process at what it uses.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache


def trim() -> None:
    """Hand back what is free. Does nothing where the C library is not glibc."""
    release = _malloc_trim()
    if release is not None:
        release(0)


@cache
def _malloc_trim() -> ctypes._CFuncPtr | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
