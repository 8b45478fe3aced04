"""Text from files, and from standard input while it is still being written.

Owns: reading without waiting for the end, letting go of a read that waits, UTF-8. Does not know: what is done with the
text.
"""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

from chatterbox.cli.errors import UsageError

READ_LEN = 4096  # bytes at most in a piece
MAX_TEXT = 16 * 2**20  # bytes of a text that is read at once: a fortnight of speech


def read_text(path: str | Path) -> str:
    """The text of a file, "-" is standard input.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, holds no text, or has no end.
    """
    name = "standard input" if path == "-" else str(path)
    if path == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed; give a TEXT")
        content = sys.stdin.buffer.read(MAX_TEXT + 1)
    else:
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_TEXT + 1)
        except FileNotFoundError:
            raise FileNotFoundError(f"text file {str(path)!r} does not exist") from None
        except OSError as error:
            raise OSError(f"text file {str(path)!r} cannot be read: {error.strerror}") from None
    if len(content) > MAX_TEXT:
        raise ValueError(f"{name} has more than {MAX_TEXT >> 20} MiB of text; say it in parts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte {content[error.start]:#04x} at {error.start}"
        raise ValueError(f"{name} is not UTF-8: {wrong}; convert it with iconv") from None
    if not text.strip():
        raise ValueError(f"{name} holds no text; give one with words")
    return text


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
