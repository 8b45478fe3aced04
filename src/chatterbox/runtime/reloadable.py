"""A loaded thing that is given up when it is not needed, and loaded again when it is used.

Owns: the moment of both, for all threads. Does not know: what is loaded, from where.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch

from chatterbox.runtime import forking
from chatterbox.runtime.allocator import return_freed_memory

T = TypeVar("T")
Kept = Mapping[str, Any]


class Reloadable(Generic[T]):
    """One value for all threads. A copy, or one from a pickle, holds the value and cannot load it again."""

    def __init__(self, value: T) -> None:
        self._value: T | None = value
        self._load: Callable[[Kept], T] | None = None
        self._kept: Kept = {}
        self._state: Callable[[T], object] = id
        self._loaded: object = None
        forking.register(self, Reloadable._renew)

    def __reduce__(self) -> tuple[Any, ...]:
        return Reloadable, (self.get(),)

    def load_by(self, load: Callable[[Kept], T], state: Callable[[T], object]) -> None:
        """From now on it can be given up.

        Args:
            load: a value from what was kept of the one before.
            state: of a value, equal while ``load`` gives the same one.
        """
        with self._lock:
            self._load, self._state, self._loaded = load, state, state(self.get())

    def get(self) -> T:
        """The value, loaded again where it was given up. Raises what loading raises; the next call tries again."""
        value = self._value
        if value is not None:
            return value
        with self._lock:
            if self._value is None:
                assert self._load is not None, "only what can be loaded is given up"
                value = self._load(self._kept)
                self._loaded, self._value = self._state(value), value
            return self._value

    def give_up(self, keep: Callable[[T], Kept], end: Callable[[T], None]) -> None:
        """Keep what ``keep`` says of the value, forget it until it is used, and ``end`` it. Twice is harmless.

        Who uses it meanwhile gets a new one: of one that ends nobody hears any more. Nothing is locked while it ends,
        for what it waits for may itself be about to use this.

        Raises:
            RuntimeError: there is nothing to load it from, or it is no more as it was loaded; it stays.
        """
        with self._lock:
            value = self._value
            if value is None:
                return
            if self._load is None:
                raise RuntimeError("this model was built from parts and cannot be reloaded: keep it, or del it")
            if self._state(value) != self._loaded:
                raise RuntimeError("this model was changed since it was loaded, which reloading would lose: keep it")
            self._kept, self._value = keep(value), None
        end(value)
        del value
        gc.collect()
        return_freed_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def close(self, end: Callable[[T], None], refuse: Callable[[Kept], T]) -> None:
        """``end`` the value, if there is one. One that was given up is not loaded any more: ``refuse`` raises."""
        with self._lock:
            self._load, self._state, self._loaded = refuse, _any, None
            if self._value is not None:
                end(self._value)

    def _renew(self) -> forking.Lock:
        self._lock = threading.RLock()
        return self._lock


def _any(value: object) -> None:
    return None
