"""What a command shows on the way, progress on a terminal, warnings, tables; and the names it can write.

Owns: standard error, which nobody need listen to; the line of progress; what may reach a terminal. Does not know: what
is in a file, what is being done.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatterbox.cli.errors import UsageError
from chatterbox.runtime.files import is_written_through

TOKENS_PER_SECOND = 25


def checked_path(path: str | Path) -> Path:
    """``path``, if a file can be written there; a pipe or device can, as it is."""
    path, target = Path(path), Path(os.path.realpath(path))
    if path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is a folder")
    if path.exists() and not _may(path, os.W_OK):
        raise UsageError(f"cannot write {str(path)!r}: it may only be read")
    if is_written_through(path):
        return path
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: its folder does not exist")
    if not _may(target.parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {str(path)!r}: its folder may only be read")
    return path


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def printable(text: str) -> str:
    """``text`` as one line for a terminal: what would command it, move in it or be invisible is shown as an escape."""
    return "".join(one if one.isprintable() or one == "\u3000" else ascii(one)[1:-1] for one in text)


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table with aligned columns."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def say_line(text: str) -> None:
    """A line on standard output, whatever is in a file's name; the work goes on where nobody reads it any more."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        drop_output()


def flush_output() -> None:
    """What was printed reaches standard output now: what fails at exit would be told by the interpreter."""
    if (flush := getattr(sys.stdout, "flush", None)) is not None:  # it may be closed, or another program's object
        flush()


def drop_output() -> None:
    """What was printed and cannot be written is forgotten."""
    try:
        flush_output()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def open_standard_files() -> None:
    """Those that are closed become the null device: the next file opened would have their number.

    ``sys.stdin`` and ``sys.stdout`` stay None where they are closed, for a command must not take them for open. What a
    terminal's encoding lacks, a name of other letters for one, is written as an escape, as on standard error.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_terminal() -> bool:
    """Whether standard error is one; it may be closed."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def tell(text: str, *, end: str = "\n") -> None:
    """Say something on standard error, if anybody listens: a command does not fail for it."""
    if sys.stderr is None:  # print would take standard output instead
        return
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # it is full, closed, or nobody reads it
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - what it holds back fails at exit too


class Progress:
    """What is being done, on one line of a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self._shown = _is_terminal()

    def stage(self, text: str) -> None:
        if self._shown:
            tell(f"\r\033[K{text} ...", end="")

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
            tell("\r\033[K", end="")


class _Warnings(logging.Handler):
    """The library's warnings, a line each, and each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) in self._seen:
            return
        self._seen.add(message)
        clear = "\r\033[K" if _is_terminal() else ""
        tell(f"{clear}chatterbox: {record.levelname.lower()}: {printable(message)}")


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
