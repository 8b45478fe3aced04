"""Text from standard input while it is still being written, and who is told when the user has had enough.

Owns: reading without waiting for the end, letting go of a read that waits. Does not know: what is done with the text.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

READ_LEN = 4096  # bytes at most in a piece


class InputPieces:
    """Text of a file descriptor, in pieces as they arrive. From a terminal each line is a paragraph of its own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_terminal = os.isatty(fd)
        self._wakes, self._waker = os.pipe()  # readable once `stop` was called
        self._is_stopped = False

    def __iter__(self) -> Iterator[str]:
        """Pieces, each as long as what was there.

        Raises:
            ValueError: what follows is not UTF-8.
        """
        decoder, data = codecs.getincrementaldecoder("utf-8-sig")(), b"\0"
        while data:
            data = self._read()
            try:
                piece = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                yield error.object[: error.start].decode("utf-8-sig")
                wrong = error.object[error.start]
                raise ValueError(f"standard input is not UTF-8: byte {wrong:#04x}; convert it with iconv") from None
            if piece:
                yield piece + "\n" * self._is_terminal

    def stop(self) -> None:
        """No more is read; whoever waits for it is let go. For any thread, and for signal handlers."""
        if not self._is_stopped:
            self._is_stopped = True
            os.write(self._waker, b"\0")

    def _read(self) -> bytes:
        if os.name == "posix":  # elsewhere only sockets can be waited for
            ready, _, _ = select.select([self._fd, self._wakes], [], [])
            if self._wakes in ready:
                return b""
        return os.read(self._fd, READ_LEN)


@contextlib.contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Within, an interrupt, or a request to end (SIGTERM), calls ``stop`` and raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> NoReturn:
        stop()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
