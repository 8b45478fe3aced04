"""What a command leaves behind and shows on the way: files, whole or not at all, progress on a terminal, warnings.

Owns: which names can be written, the line of progress. Does not know: what is in a file, what is being done.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox.cli.errors import UsageError
from chatterbox.runtime.files import whole

if TYPE_CHECKING:
    import numpy as np

TOKENS_PER_SECOND = 25


def checked_audio_path(path: str | Path) -> Path:
    """``path``, if an audio file of its kind can be written there; asked before the work is done."""
    import soundfile

    path = Path(path)
    if path.suffix[1:].upper() not in soundfile.available_formats():
        raise UsageError(f"cannot write {str(path)!r}: the name must end in .wav, .flac, .ogg or another audio format")
    return checked_path(path)


def checked_path(path: str | Path) -> Path:
    """``path``, if a file can be written there."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: its folder does not exist")
    return path


def write_audio(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Samples (N,) as a file of the kind that the name says."""
    import soundfile

    with whole(path) as part:
        soundfile.write(part, samples, sample_rate, format=path.suffix[1:].upper())


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


class Progress:
    """What is being done, on one line of a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def stage(self, text: str) -> None:
        if self._shown:
            print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)

    def tokens(self, count: int) -> None:
        """``count``: speech tokens so far."""
        if count % 5 == 1:
            self.stage(f"speaking: {count / TOKENS_PER_SECOND:.1f} s")

    def bar(self, done: int, total: int, text: str) -> None:
        """Part of something whose end is known."""
        width = 20
        filled = width * done // max(total, 1)
        self.stage(f"[{'#' * filled}{'-' * (width - filled)}] {done}/{total} {text}")

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class _Warnings(logging.Handler):
    """The library's warnings, a line each, and each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) in self._seen:
            return
        self._seen.add(message)
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{clear}chatterbox: {record.levelname.lower()}: {message}", file=sys.stderr)


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """While a command runs, what the library warns of is shown like the command's own errors."""
    logger, handler = logging.getLogger("chatterbox"), _Warnings()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    report = Progress()
    try:
        yield report
    finally:
        report.clear()
