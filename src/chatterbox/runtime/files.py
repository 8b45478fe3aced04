"""Files that are whole or not there.

Owns: the file that is written beside the one that is meant, what killed writers left of such, what cannot be replaced
(pipes, devices). Does not know: what is in a file.

A file under way has a name that nobody can guess, is made by its writer and by no one else (O_EXCL, so that a link
planted there is not followed), and is locked as long as its writer lives: who finds one that is not may remove it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CAN_LOCK = sys.platform != "win32"  # there an open file can be neither removed nor renamed
if sys.platform != "win32":
    import fcntl

NAME_LEN = 50  # characters of a name that its file under way has too: a folder allows 255 bytes
PART = ".part"
ABANDONED = 3600.0  # seconds after which nobody writes it any more, where files cannot be locked
_TRIES = 16


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes its place at the end, so that ``path`` is whole or as it was.

    A link stays, and what it points at is written; a file that was there keeps its mode and, as far as may be, its
    owner. What killed writers left of ``path`` is removed. A pipe or device is written to as it is.
    """
    if is_written_through(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    for left in left_overs(target.parent, PART, target.name):
        remove_left_over(left)
    before = target.stat() if target.exists() else None
    with replacing(target, PART, mode=0o666 if before is None else stat.S_IMODE(before.st_mode)) as part:
        if before is not None and CAN_LOCK:
            with contextlib.suppress(OSError):
                os.chown(part, before.st_uid, before.st_gid)
            part.chmod(stat.S_IMODE(before.st_mode))
        yield part


@contextlib.contextmanager
def replacing(target: Path, suffix: str, *, mode: int) -> Iterator[Path]:
    """A new, empty, locked file beside ``target`` that replaces it at the end, and is gone if anything fails."""
    fd, part = _make_beside(target, suffix, mode)
    with contextlib.ExitStack() as held:
        held.callback(part.unlink, missing_ok=True)
        if CAN_LOCK:
            held.callback(os.close, fd)
        else:
            os.close(fd)
        yield part
        try:
            os.replace(part, target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(part, target)  # a mount of its own, as containers have them, which nothing can replace


def for_soundfile(path: str | os.PathLike[str]) -> bytes | str | os.PathLike[str]:
    """``path`` as soundfile takes it, which cannot encode every name that a file may have."""
    return os.fsencode(path) if os.name == "posix" else path


def is_written_through(path: Path) -> bool:
    """Whether ``path`` is a pipe, a device or the like, or a link to one: written to as it is, never replaced."""
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def left_overs(folder: Path, suffix: str, name: str | None = None) -> Iterator[Path]:
    """Files of ``folder`` that `replacing` made and that nobody has finished; ``name``: those of one file alone."""
    stem = ".+" if name is None else re.escape(name[:NAME_LEN])
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]+{re.escape(suffix)}", re.DOTALL)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield folder / entry.name


def remove_left_over(path: Path) -> bool:
    """Remove a file that no living process writes; whether it is gone."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            is_free = _lock(fd, waits=False)
            if is_free is None:
                is_free = time.time() - os.fstat(fd).st_mtime > ABANDONED
            if is_free:
                os.unlink(path)
        finally:
            os.close(fd)
        return is_free
    return False


def _make_beside(path: Path, suffix: str, mode: int) -> tuple[int, Path]:
    for _ in range(_TRIES):
        part = path.with_name(f".{path.name[:NAME_LEN]}.{secrets.token_hex(8)}{suffix}")
        try:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue
        if _lock(fd) and not os.fstat(fd).st_nlink:  # swept before it was locked
            os.close(fd)
            continue
        return fd, part
    raise FileExistsError(f"no name is free beside {str(path)!r}")


def _lock(fd: int, *, waits: bool = True) -> bool | None:
    """Hold the file until ``fd`` is closed: False if another process does; None where files cannot be locked."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
