"""OpenMP's threads of one thread of the program: idle ones are given back, or it computes without any.

Owns: finding the runtime that torch has loaded, the calls of it. Does not know: who computes when.

Every thread that has run a parallel operation of torch keeps a team of threads for its next one. GNU's runtime counts
them all: once there are more than cores, every team sleeps at every barrier instead of waiting a little, which slows
small operations down although no more than one team works at a time. So a thread that waits for another one's work
gives its team back; its next parallel operation makes a new one. Where several threads compute at once, on networks
too small for a team to pay, each has none.

The threads of a team that was given back end a moment later, and may hold a lock of MKL's while they do. A fork waits
for that moment: its child would wait for the lock for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds that a fork waits for them at most
SOFT = 1  # `omp_pause_soft`: settings such as the number of threads stay
MAPS, TASKS = Path("/proc/self/maps"), Path("/proc/self/task")
ENDING_SECONDS = 0.02  # after which a thread that was let go has ended, if none has ended meanwhile
_LIBRARY = r"\s(/\S*/{}[^/\s]*\.so\S*)$"
_NEEDED = ("omp_pause_resource_all", "omp_get_max_threads", "omp_set_num_threads")  # OpenMP 5.0


class Releases:
    """Teams that were given back."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Nothing of it is another process's."""
        self.lock = threading.RLock()  # held while one is given back, or a process forks
        self.last = -math.inf  # in seconds of `time.monotonic`

    def settle(self) -> None:
        """Wait until the threads of those teams have ended."""
        now = time.monotonic()
        since, until, threads = self.last, now + PATIENCE, _threads()
        while now < min(since + ENDING_SECONDS, until):
            time.sleep(0.001)
            now, seen, threads = time.monotonic(), threads, _threads()
            since = since if threads == seen else now


RELEASES = Releases()


def release_idle_threads() -> None:
    """Give back the calling thread's team, if it has one; not from within a parallel region. Never raises."""
    # In a child that was forked before a model was loaded, the thread has one, and a team that is dead.
    if (runtime := _runtime()) is not None and runtime.omp_get_max_threads() > 1:
        with RELEASES.lock:
            runtime.omp_pause_resource_all(SOFT)
            RELEASES.last = time.monotonic()


def _threads() -> set[str]:
    """Of this process, Python's and others."""
    with contextlib.suppress(OSError):
        return {path.name for path in TASKS.iterdir()}
    return set()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The calling thread computes without a team inside, where `can_compute_alone`."""
    runtime = _runtime()
    if runtime is None:
        yield
        return
    # Torch sets a thread's number when it first asks for it, and MKL, which has one of its own, to the same.
    own = sys.modules["torch"].get_num_threads()
    set_mkl = _mkl_setter()
    runtime.omp_set_num_threads(1)
    own_mkl = set_mkl(1)
    try:
        yield
    finally:
        runtime.omp_set_num_threads(own)
        set_mkl(own_mkl)


def can_compute_alone() -> bool:
    """Whether `alone` does anything: torch computes with GNU's OpenMP, as on Linux."""
    return _runtime() is not None


def _runtime() -> ctypes.CDLL | None:
    """The runtime in this process; None: there is none, or torch is not loaded, or not yet."""
    return _found() if "torch._C" in sys.modules else None


@cache
def _found() -> ctypes.CDLL | None:
    loaded = list(_libraries("libgomp"))
    fit = [one for one in loaded if all(hasattr(one, name) for name in _NEEDED)]
    if loaded and not fit:
        logger.info("OpenMP's runtime in this torch cannot give idle threads back; several callers are slower for it")
    return fit[0] if fit else None


@cache
def _mkl_setter() -> Callable[[int], int]:
    """`mkl_set_num_threads_local` of the MKL in torch, which returns what it replaces; else nothing."""
    for torch in _libraries("libtorch_cpu"):
        with contextlib.suppress(AttributeError):
            setter: Callable[[int], int] = torch.MKL_Set_Num_Threads_Local
            return setter
    return lambda number: number


def _libraries(name: str) -> Iterator[ctypes.CDLL]:
    """Those whose names begin so, of this process."""
    try:
        paths = dict.fromkeys(re.findall(_LIBRARY.format(name), MAPS.read_text(), re.MULTILINE))
    except OSError:
        return
    for path in paths:
        with contextlib.suppress(OSError):
            yield ctypes.CDLL(path)
