"""Prefixes on disk: a folder of files that outlives the process.

Owns: file names by content, whole files or none, the folder's size, what killed writers left; names of whole prefixes,
and which part of a file is of use to which model. Files hold whole prefixes, so that each is of use alone. Does not
know: trees, what is in a file (`disk_file`). Nothing here fails a request: what cannot be read, written or used is a
miss and a warning. A file that is broken or holds NaN is removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix import disk_file
from chatterbox.kvcache.prefix.disk_file import MisfitError
from chatterbox.kvcache.prefix.keys import content_hash
from chatterbox.kvcache.prefix.tree import NO_TEXT, Label, Match
from chatterbox.runtime.files import left_overs, remove_left_over, replacing

logger = logging.getLogger(__name__)

SUFFIX = ".prefix.safetensors"
PARTIAL = ".partial"
_EARLY = re.compile(r"tmp\w{8}\.partial")  # what earlier versions left
PRIVATE = 0o600  # a file's key names the tokens of a text


@dataclass(frozen=True)
class DiskEntry:
    """One file of a tier, as its header describes it. ``last_use``: seconds since the epoch."""

    path: Path
    key: str
    num_positions: int
    nbytes: int
    last_use: float


@dataclass(frozen=True)
class Form:
    """What the segments of one model have in common, and how long its voices' own part is."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    root_len: int

    @classmethod
    def of(cls, root: Segment) -> Form:
        """Of the model that computed a voice's own part."""
        layers, heads, _, head_dim = root.keys.shape
        return cls(layers, heads, head_dim, root.keys.dtype, len(root))

    def check(self, segment: Segment, labels: tuple[Label, ...]) -> None:
        """Raise MisfitError unless ``segment`` may be the whole prefix ``labels`` of this model."""
        mine = (self.num_layers, self.num_heads, self.head_dim, self.dtype)
        layers, heads, _, head_dim = segment.keys.shape
        theirs = (layers, heads, head_dim, segment.keys.dtype)
        if theirs != mine:
            raise MisfitError(f"it has {_shown(theirs)}, not {_shown(mine)}")
        if segment.start:
            raise MisfitError(f"it starts at position {segment.start}")
        spoken = num_spoken(labels)
        least = self.root_len + spoken + (spoken < len(labels))
        if segment.end < least or (spoken == len(labels) and segment.end > least):
            raise MisfitError(f"it has {segment.end} positions, not {least}")


class DiskTier:
    """Segments by key in one folder, the least recently used leave first."""

    def __init__(self, folder: str | Path, *, budget_bytes: int = 2**30) -> None:
        """Makes the folder if need be. Files that are not this tier's own are left alone and not counted."""
        self.folder, self.budget_bytes = Path(folder), budget_bytes
        self._warned: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._cannot_write(error)
        for path in self.left_overs():
            remove_left_over(path)

    @property
    def nbytes(self) -> int:
        """Bytes of this tier's files now, those that are being written and left-overs included."""
        return sum(size for _, size, _ in [*self.files(), *_stats_of(self.left_overs())])

    def load(
        self, key: str, device: torch.device | str = "cpu", *, form: Form | None = None, labels: tuple[Label, ...] = ()
    ) -> Segment | None:
        """The segment stored under ``key``; None if there is none that is whole.

        ``form``: of the model that wants it as its prefix ``labels``; None takes what is there.
        """
        path = self._path(key)
        try:
            segment = disk_file.read(path, key, self.budget_bytes)
            if form is not None:
                form.check(segment, labels)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn_once("read", "%s cannot be read (%s); computing instead", path, error.strerror)
            return None
        except MisfitError as error:
            self._warn_once(key, "%s is not of this model (%s); computing instead", path, error)
            return None
        except ValueError as error:
            gone = _removed(path)
            self._warn_once(key, "%s is broken%s (%s)", path, " and is removed" * gone, error)
            return None
        with contextlib.suppress(OSError):  # another user's
            os.utime(path)
        return Segment(segment.keys.to(device), segment.values.to(device), segment.start)

    def store(self, key: str, segment: Segment) -> bool:
        """Write a segment, whole or not at all; False if it was not written."""
        if segment.nbytes > self.budget_bytes:
            return False
        content, path = disk_file.packed(key, segment), self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            if not (_is_free(path) and self._make_room(len(content))):
                return False
            with replacing(path, PARTIAL, mode=PRIVATE) as part:
                part.write_bytes(content)
            self._make_room(0)  # others may have written meanwhile
        except OSError as error:
            self._cannot_write(error)
            return False
        self._warned -= {"write", key}
        return True

    def files(self) -> list[tuple[Path, int, float]]:
        """This tier's files with size and time of last use, whole or broken."""
        return _stats_of(self.folder / name for name in self._names() if name.endswith(SUFFIX))

    def left_overs(self) -> list[Path]:
        """Files that are being written, or that were when their writer was killed."""
        early = [self.folder / name for name in self._names() if _EARLY.fullmatch(name)]
        return [*left_overs(self.folder, PARTIAL), *early]

    def entries(self) -> list[DiskEntry]:
        """What is here, the latest used first; headers alone are read, and files whose header is broken left out."""
        entries = []
        for path, size, last_use in sorted(self.files(), key=lambda file: -file[2]):
            with contextlib.suppress(OSError, ValueError):
                header = disk_file.read_header(path)
                entries.append(DiskEntry(path, header.about["key"], header.num_positions, size, last_use))
        return entries

    def holds(self, entry: DiskEntry) -> bool:
        """Whether the file is what `load` reads under its key, and no other's copy of it."""
        return entry.path == self._path(entry.key)

    def clear(self) -> None:
        """Remove this tier's files, as far as this user may."""
        for path in [path for path, _, _ in self.files()]:
            _removed(path)
        for path in self.left_overs():
            remove_left_over(path)

    def _path(self, key: str) -> Path:
        return self.folder / (content_hash(key) + SUFFIX)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except OSError:
            return []

    def _make_room(self, nbytes: int) -> bool:
        """Remove the least recently used until ``nbytes`` more fit; False if they do not."""
        files = sorted(self.files(), key=lambda file: file[2])
        free = self.budget_bytes - nbytes - sum(size for _, size, _ in [*files, *_stats_of(self.left_overs())])
        for path, size, _ in files:
            if free >= 0:
                break
            free += size * _removed(path)
        return free >= 0

    def _cannot_write(self, error: OSError) -> None:
        self._warn_once("write", "cannot write to %s (%s); going on without", self.folder, error.strerror)

    def _warn_once(self, kind: str, message: str, *values: object) -> None:
        """Once of a kind, until what it warns of is over."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("prefix cache: " + message, *values)


class Archive:
    """Prefixes of sequences over a `DiskTier`. Safe from several threads, as that is."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk

    def load(
        self,
        voice: str,
        labels: tuple[Label, ...],
        known: Match,
        device: torch.device | str,
        form: Form | None = None,
    ) -> Segment | None:
        """What the disk has of what is missing after ``known``, from the first missing position on; None if nothing.

        ``form``: of the model that asks; None is that of ``known``, if there is any.
        """
        if known.segments:
            form = Form.of(known.segments[0])
        stored = self._disk.load(disk_key(voice, labels), device, form=form, labels=labels)
        if stored is None or stored.start:
            return None
        end = known.end_of(labels, default=0 if labels[-1:] == (NO_TEXT,) else stored.end)
        rest = stored[len(known) : end]
        return rest if len(rest) else None

    def store(self, voice: str, labels: tuple[Label, ...], segments: tuple[Segment, ...]) -> None:
        """Write a whole prefix, ``segments`` in order from position 0."""
        self._disk.store(disk_key(voice, labels), Segment.join(segments))


def disk_key(voice: str, labels: tuple[Label, ...]) -> str:
    """Name of a prefix on disk; the same in every process, because a voice's name is its content.

    Empty texts of all lengths have one name, for the longest so far begins with all others.
    """
    spoken = num_spoken(labels)
    return f"{voice} {labels[:spoken]!r}" + f" {NO_TEXT}" * (spoken < len(labels))


def num_spoken(labels: tuple[Label, ...]) -> int:
    """How many labels there are before those of an empty text."""
    return next((i for i in range(len(labels), 0, -1) if labels[i - 1] != NO_TEXT), 0)


def voice_of(key: str) -> str:
    """The voice that a name on disk is of."""
    return key.partition(" ")[0]


def _is_free(path: Path) -> bool:
    """Whether a file may take this name: there is none, or one that can be replaced."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(kind) or stat.S_ISLNK(kind)


def _removed(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            path.unlink()
        except OSError:
            return False
    return True


def _stats_of(paths: Iterable[Path]) -> list[tuple[Path, int, float]]:
    """Size and time of last use of those that are files; another process may remove them meanwhile."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                found.append((path, about.st_size, about.st_mtime))
    return found


def _shown(form: tuple[int, int, int, torch.dtype]) -> str:
    layers, heads, head_dim, dtype = form
    return f"{layers} layers of {heads} heads, {head_dim} wide, {str(dtype).removeprefix('torch.')}"
