"""Threads that want the same thing at the same time: one makes it, the others wait for it and share it.

Owns: who makes and who waits. Does not know: what is made, whether it is kept afterwards.

A thread that fails fails alone: one of those that wait for it tries next, the rest go on waiting. Its turn is a lock
that a ``with`` block holds, and a flight is in the table for as long as a thread refers to it, so there is nothing to
clean up: a thread that is interrupted at any point, by KeyboardInterrupt too, leaves nobody waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from chatterbox.runtime import forking

Result = TypeVar("Result")


class _Flight(Generic[Result]):
    """One making of one thing. ``landed`` holds the result once there is one."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.landed: tuple[Result] | None = None


class SingleFlight(Generic[Result]):
    """Calls by key, one at a time for the same key. Thread-safe."""

    def __init__(self) -> None:
        forking.register(self, SingleFlight._renew)

    def run(self, key: Hashable, make: Callable[[], Result]) -> tuple[Result, bool]:
        """The result of ``make``, and whether it is another thread's, which this one waited for.

        A result is shared by those that wait for it and not kept: who comes later calls ``make`` again. So ``make``
        begins with a look at where results are kept. What it raises is raised here and nowhere else. It must not ask
        for ``key`` itself.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None or flight.landed is not None:
                flight = self._flights[key] = _Flight()
        with flight.turn:
            if flight.landed is not None:
                return flight.landed[0], True
            result = make()
            flight.landed = (result,)
        return result, False

    def _renew(self) -> forking.Lock:
        """A forked child does not wait for what other threads of its parent are at."""
        self._flights: WeakValueDictionary[Hashable, _Flight[Result]] = WeakValueDictionary()
        self._lock = threading.RLock()
        return self._lock
