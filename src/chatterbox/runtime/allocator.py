"""Memory that was freed, and that C's allocator has kept for what comes next.

Owns: the calls of glibc. Does not know: who freed it.
"""

from __future__ import annotations

import contextlib
import ctypes


def return_freed_memory() -> None:
    """Give back to the system what lies freed between what is in use; does nothing without glibc.

    After much was made and dropped: a loaded model whose weights were packed on the way leaves hundreds of MB so.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
