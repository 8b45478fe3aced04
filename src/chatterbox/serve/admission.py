"""Who is answered now, and who is told to come again: places in all and of each key, a rate of each key, the end.

Owns: the counts, their 429 and 503. Does not know: HTTP, the keys themselves (a caller is a number), what is answered.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import BUSY, CLOSED, RETRY_SECONDS, ApiError

MINUTE = 60.0  # seconds
Caller = int | None  # whose key it was, by number; None: there are no keys


class Admissions:
    """Places among those that are answered. For the thread of the event loop alone."""

    def __init__(self, config: ServerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._held = Counter[Caller]()
        self._recent: dict[Caller, deque[float]] = {}
        self._has_ended = False

    @property
    def num_held(self) -> int:
        """Requests that are answered now."""
        return self._held.total()

    def end(self) -> None:
        """Nobody is admitted any more."""
        self._has_ended = True

    def admit(self, caller: Caller) -> Admission:
        """A place for one more, to be entered.

        Raises:
            ApiError: there is none now; it says when to come again. Or there will be none: the server ends.
        """
        if self._has_ended:
            raise ApiError("the server is shutting down; ask again when it is back", CLOSED, code="shutting_down")
        own, most = self._held[caller], self._config.key_streams
        if caller is not None and most is not None and own >= most:
            raise _busy(f"{own} requests of this key are being answered, which is all that it may have", RETRY_SECONDS)
        if self.num_held >= self._config.max_streams:
            raise _busy(f"{self.num_held} requests are being answered, which is all that fit", RETRY_SECONDS)
        self._count(caller)
        return Admission(self._held, caller)

    def _count(self, caller: Caller) -> None:
        """One more request of ``caller``, if its rate allows."""
        most = self._config.key_rate
        if caller is None or most is None:
            return
        now, recent = self._clock(), self._recent.setdefault(caller, deque())
        while recent and recent[0] <= now - MINUTE:
            recent.popleft()
        if len(recent) >= most:
            message = f"this key has made {len(recent)} requests within a minute, which is all that it may"
            raise _busy(message, math.ceil(recent[0] + MINUTE - now), code="rate_limit_exceeded")
        recent.append(now)


class Admission:
    """A place: given back when the answer is over, or was never begun."""

    def __init__(self, held: Counter[Caller], caller: Caller) -> None:
        self._held, self._caller, self._is_held = held, caller, False

    def __enter__(self) -> Callable[[], None]:
        self._is_held = True
        self._held[self._caller] += 1
        return self._leave

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._leave()

    def _leave(self) -> None:
        if self._is_held:
            self._is_held = False
            self._held[self._caller] -= 1


def _busy(message: str, seconds: int, code: str = "queue_full") -> ApiError:
    when = "in a moment" if seconds <= RETRY_SECONDS else f"in {seconds} seconds"
    return ApiError(f"{message}; try again {when}", BUSY, code=code, headers={"retry-after": str(seconds)})
