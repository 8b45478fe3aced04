"""Memory that was freed, and that C's allocator has kept for what comes next.

Owns: the calls of glibc. Does not know: who freed it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h
_SETTINGS = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")  # variables by which a user has decided


def return_freed_memory() -> None:
    """Give back to the system what lies freed between what is in use; does nothing without glibc.

    After much was made and dropped: a loaded model whose weights were packed on the way leaves hundreds of MB so.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def share_arenas() -> bool:
    """Have threads that come share `ARENAS` pools of memory; returns whether they will. For a process of our own.

    glibc gives each thread a pool, up to eight a core, and what was freed in one serves no other: a server whose
    streams are threads keeps the most that ever was in each. A variable that a user has set stays as it is, and nothing
    happens without glibc.
    """
    if any(os.environ.get(name) for name in _SETTINGS):
        return False
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS))
    return False
