"""Requests to end: an interrupt (Ctrl-C), SIGTERM, and SIGHUP where there is one.

Owns: that each unwinds what a command does, as an exception of the main thread, so that nothing half done stays; the
exit code. Does not know: what is cleaned up.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ended(KeyboardInterrupt):
    """A signal asked for the end. ``number``: which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ending_signals(stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, each calls ``stop`` and raises `Ended`; one that is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> NoReturn:
        stop()
        raise Ended(number)

    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 for an interrupt."""
    return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)
