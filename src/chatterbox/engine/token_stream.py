"""What a request's speech tokens go to.

Owns: the contract `TokenSink`, and `TokenStream`, a sink that is iterated. Does not know: who decodes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from chatterbox.runtime.openmp import release_idle_threads


class TokenSink(Protocol):
    """Gets one request's tokens in the scheduler's thread; no call may wait for anything."""

    def begin(self, num_cached: int, num_computed: int) -> None:
        """The request has its rows. Positions, over all of them, that come before its first decoded token: found in
        memory, and computed. Called once."""

    def push(self, tokens: list[int]) -> None:
        """Tokens were decoded; the last of all is the stop token, or the limit's."""

    def finish(self) -> None:
        """There are no more."""

    def fail(self, error: BaseException) -> None:
        """There will be no more, for this reason."""

    @property
    def is_eager(self) -> bool:
        """Whether more tokens are wanted now. `Scheduler.wake` says that this has changed to True."""

    @property
    def is_full(self) -> bool:
        """Whether so many are waiting that no more may come even where others' steps would bring them."""


class TokenStream:
    """Speech tokens of one request as they are decoded, to be iterated once."""

    def __init__(self, limit: int | None = None) -> None:
        """``limit``: tokens that may be decoded ahead of the reader, and as many again by others' steps; None: all."""
        self._limit = limit
        self._tokens: deque[int] = deque()
        self._changed = threading.Condition()
        self._is_done = False
        self._error: BaseException | None = None
        self.num_cached = self.num_computed = 0
        self.cancel: Callable[[], None] = _nothing  # set by `Scheduler.stream`
        self.wake: Callable[[], None] = _nothing

    @property
    def is_eager(self) -> bool:
        return self._limit is None or len(self._tokens) < self._limit

    @property
    def is_full(self) -> bool:
        return self._limit is not None and len(self._tokens) >= 2 * self._limit

    def begin(self, num_cached: int, num_computed: int) -> None:
        self.num_cached, self.num_computed = num_cached, num_computed

    def push(self, tokens: list[int]) -> None:
        with self._changed:
            self._tokens += tokens
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._is_done = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error, self._is_done = error, True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[int]:
        """Tokens to the last; left early, or forgotten, it closes the stream."""
        release_idle_threads()
        try:
            while (token := self._next()) is not None:
                yield token
        finally:
            self.close()

    def close(self) -> None:
        """No more tokens are wanted: the request leaves within a step."""
        with self._changed:
            was_done, self._is_done = self._is_done, True
        cancel, self.cancel, self.wake = self.cancel, _nothing, _nothing  # they refer to this stream
        if not was_done:
            cancel()

    def _next(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._tokens or self._is_done)
            if not self._tokens:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return None
            was_eager = self.is_eager
            token = self._tokens.popleft()
            wakes = self.is_eager and not was_eager
        if wakes:
            self.wake()
        return token


def _nothing() -> None:
    return None
