"""Forked processes: what a child of a process with a loaded model needs to speak.

Owns: the hooks around `os.fork`, which locks they hold meanwhile, torch's number of threads in the child. Does not
know: what a lock is around; torch, unless the program has loaded it.

A child has one thread, the one that forked: locks of other threads stay locked there for ever, what other threads were
at is never finished, and OpenMP's team of the thread that forked is dead, so that whatever waits for it hangs. Objects
that have such state are registered here. A fork then waits, though not for long, until no other thread is inside one of
them, gives the team back, and each object makes its state anew in the child, where torch gets one thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol, TypeVar

from chatterbox.runtime import openmp

logger = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = 5.0  # seconds that a fork waits for other threads; a step of decoding takes at most about one
POLL = 0.001  # seconds between two tries to have all locks


class Lock(Protocol):
    """`threading.RLock` or `threading.Condition`: the thread that forks may hold it already."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...
    def release(self) -> None: ...


def register(owner: T, renew: Callable[[T], Lock | None] = lambda _: None) -> None:
    """Make ``owner`` usable in forked children, for as long as it lives; it is held weakly.

    Args:
        owner: a model, or what has locks, threads or work of other threads under way. Hashed by identity.
        renew: makes all that belongs to one process, and returns the lock that a fork has to hold, if there is one.
            Called at once, and with nothing locked in each child.
    """
    _install()
    _FORKS.add(owner, renew)


@contextlib.contextmanager
def step(lock: Lock) -> Iterator[None]:
    """Hold ``lock`` for one step of a thread that does little else; a fork gets its turn between two steps.

    A step does not wait for that of another thread, which may have to wait for the fork.
    """
    with _FORKS.turnstile:
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def require_same_process(device: object, pid: int) -> None:
    """Refuse a CUDA ``device`` outside of the process ``pid``, `os.getpid()` of where it was first used.

    Raises:
        RuntimeError: this is a forked child of it.
    """
    if str(device).startswith("cuda") and os.getpid() != pid:
        raise RuntimeError(
            f"the model is on {device}, and CUDA cannot be used in a forked process; "
            "start processes with multiprocessing's 'spawn'"
        )


class _Held(threading.local):
    """What a thread holds for the fork that it is at; other threads may fork at the same time."""

    def __init__(self) -> None:
        self.locks: list[Lock] = []


class _Forks:
    """All registered objects."""

    def __init__(self) -> None:
        self.turnstile, self._lock = threading.RLock(), threading.RLock()
        self._owners: weakref.WeakKeyDictionary[Any, tuple[Callable[[Any], Lock | None], Lock | None]]
        self._owners = weakref.WeakKeyDictionary()
        self._held = _Held()

    def add(self, owner: T, renew: Callable[[T], Lock | None]) -> None:
        lock = renew(owner)
        with self._lock:
            self._owners[owner] = (renew, lock)

    def before(self) -> None:
        """Wait until this thread has all locks. In no order, so that none is kept while another is waited for."""
        if self._owners:
            openmp.release_idle_threads()
        deadline = time.monotonic() + PATIENCE
        if self.turnstile.acquire(timeout=PATIENCE):
            self._held.locks.append(self.turnstile)
        while not self._acquire_all():
            if time.monotonic() >= deadline:
                logger.warning("fork: a thread did not come to rest in %g s; the child may not speak", PATIENCE)
                return
            time.sleep(POLL)
        if self._owners:
            openmp.RELEASES.lock.acquire()
            self._held.locks.append(openmp.RELEASES.lock)
            openmp.RELEASES.settle()

    def after_in_parent(self) -> None:
        while self._held.locks:
            self._held.locks.pop().release()

    def after_in_child(self) -> None:
        self._held.locks.clear()
        openmp.RELEASES.renew()
        self.turnstile, self._lock = threading.RLock(), threading.RLock()
        owners = list(self._owners.items())
        if owners and (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)
        for owner, (renew, _) in owners:
            self.add(owner, renew)

    def _acquire_all(self) -> bool:
        """Take the lock of each object, and before those the registry's; all or none."""
        if not self._lock.acquire(blocking=False):
            return False
        held: list[Lock] = [self._lock]
        for _, lock in list(self._owners.values()):
            if lock is None:
                continue
            if not lock.acquire(blocking=False):
                for taken in reversed(held):
                    taken.release()
                return False
            held.append(lock)
        self._held.locks += held
        return True


_FORKS = _Forks()


@cache
def _install() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_FORKS.before, after_in_parent=_FORKS.after_in_parent, after_in_child=_FORKS.after_in_child
        )
