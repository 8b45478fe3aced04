"""Whether the server can speak, as whoever watches it wants to know: not whether it once could.

Owns: what the last requests have come to, when a word is spoken to find out. Does not know: HTTP, models.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from chatterbox.serve.errors import FAULT, api_error

logger = logging.getLogger(__name__)

BEGINNING, HEALTHY, FAILING = "initializing", "healthy", "error"
PAUSE = 10.0  # seconds between two words that are spoken to find out


class Health:
    """Of one server. Thread-safe.

    Requests tell it how they ended. Once one has failed by the server's fault, and none has been spoken since, a
    question makes the model say a word, at most one in `PAUSE` seconds.
    """

    def __init__(self, speak: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """``speak``: says a word, or raises."""
        self._speak, self._clock = speak, clock
        self._lock = threading.Lock()
        self._is_ready = self._has_failed = False
        self._tried = -PAUSE

    @property
    def is_ready(self) -> bool:
        """Whether the first model is loaded and has spoken."""
        return self._is_ready

    def begin(self) -> None:
        self._is_ready = True

    def end(self) -> None:
        """From now on the server ends."""
        self._is_ready = False

    def spoken(self) -> None:
        """A request has been answered with speech."""
        self._has_failed = False

    def failed(self, error: BaseException) -> None:
        """A request has failed; what its caller is to blame for says nothing of the server."""
        if api_error(error).status >= FAULT:
            self._has_failed = True

    def status(self) -> str:
        """How the server is; it may have to say a word first."""
        if not self._is_ready:
            return BEGINNING
        with self._lock:  # one word for all who ask meanwhile
            if self._has_failed and self._clock() - self._tried >= PAUSE:
                self._try()
        return FAILING if self._has_failed else HEALTHY

    def _try(self) -> None:
        try:
            self._speak()
        except Exception:
            logger.exception("the server cannot speak")
        else:
            self._has_failed = False
        self._tried = self._clock()
