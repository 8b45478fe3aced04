"""Prefixes on disk: a folder of safetensors files that outlives the process.

Owns: file names by content, whole files or none, checksums, the folder's size; names of whole prefixes, and which part
of a file is of use. Files hold whole prefixes, so that each is of use alone. Does not know: trees. Nothing here fails a
request: what cannot be read or written is a miss and a warning. A file that is broken or holds NaN is removed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix.keys import content_hash
from chatterbox.kvcache.prefix.tree import NO_TEXT, Label, Match

logger = logging.getLogger(__name__)

FORMAT = "chatterbox-prefix-1"
SUFFIX = ".prefix.safetensors"


@dataclass(frozen=True)
class DiskEntry:
    """One file of a tier, as its header describes it. ``last_use``: seconds since the epoch."""

    path: Path
    key: str
    num_positions: int
    nbytes: int
    last_use: float


class DiskTier:
    """Segments by key in one folder, the least recently used leave first."""

    def __init__(self, folder: str | Path, *, budget_bytes: int = 2**30) -> None:
        """Makes the folder if need be. Files that are not this tier's own are left alone and not counted."""
        self.folder, self.budget_bytes = Path(folder), budget_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._could_write = True

    @property
    def nbytes(self) -> int:
        """Bytes of this tier's files now."""
        return sum(size for _, size, _ in self.files())

    def load(self, key: str, device: torch.device | str = "cpu") -> Segment | None:
        """The segment stored under ``key``; None if there is none that is whole."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                keys, values = file.get_tensor("keys"), file.get_tensor("values")
            if (about.get("format"), about.get("key")) != (FORMAT, key):
                raise ValueError("it is another file")
            if about.get("checksum") != content_hash(keys, values):
                raise ValueError("its checksum does not match")
            if not Segment(keys, values, 0).is_finite:
                raise ValueError("it holds NaN or infinite values")
            segment = Segment(keys.to(device), values.to(device), int(about["start"]))
            os.utime(path)
        except PermissionError as error:
            logger.warning("prefix cache: %s cannot be read (%s); computing instead", path, error.strerror)
            return None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("prefix cache: %s is broken and is removed (%s)", path, str(error).partition("\n")[0])
            path.unlink(missing_ok=True)
            return None
        return segment

    def store(self, key: str, segment: Segment) -> bool:
        """Write a segment, whole or not at all; False if it was not written."""
        from safetensors.torch import save

        keys, values = segment.keys.cpu().contiguous(), segment.values.cpu().contiguous()
        if keys.nbytes + values.nbytes > self.budget_bytes:
            return False
        about = {"format": FORMAT, "key": key, "start": str(segment.start), "checksum": content_hash(keys, values)}
        content = save({"keys": keys, "values": values}, metadata=about)
        try:
            self._make_room(len(content))
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
                try:
                    file.write(content)
                    file.close()
                    os.replace(file.name, self._path(key))
                except BaseException:
                    file.close()
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            if self._could_write:
                logger.warning("prefix cache: cannot write to %s (%s); going on without", self.folder, error.strerror)
            self._could_write = False
            return False
        self._could_write = True
        return True

    def files(self) -> list[tuple[Path, int, float]]:
        """This tier's files with size and time of last use, whole or broken."""
        files = []
        for path in self.folder.glob("*" + SUFFIX):
            try:
                about = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            files.append((path, about.st_size, about.st_mtime))
        return files

    def entries(self) -> list[DiskEntry]:
        """What is here, the latest used first; headers alone are read, and files whose header is broken left out."""
        from safetensors import SafetensorError, safe_open

        entries = []
        for path, size, last_use in sorted(self.files(), key=lambda file: -file[2]):
            try:
                with safe_open(str(path), "pt") as file:
                    about, shape = file.metadata() or {}, file.get_slice("keys").get_shape()
            except (SafetensorError, OSError):
                continue
            if about.get("format") == FORMAT and "key" in about:
                entries.append(DiskEntry(path, about["key"], shape[2], size, last_use))
        return entries

    def clear(self) -> None:
        for path, _, _ in self.files():
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / (content_hash(key) + SUFFIX)

    def _make_room(self, nbytes: int) -> None:
        files = sorted(self.files(), key=lambda file: file[2])
        held = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if held + nbytes <= self.budget_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size


class Archive:
    """Prefixes of sequences over a `DiskTier`. Safe from several threads, as that is."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk

    def load(self, voice: str, labels: tuple[Label, ...], known: Match, device: torch.device | str) -> Segment | None:
        """What the disk has of what is missing after ``known``, from the first missing position on; None if nothing."""
        stored = self._disk.load(disk_key(voice, labels), device)
        if stored is None:
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
    spoken = next((i for i in range(len(labels), 0, -1) if labels[i - 1] != NO_TEXT), 0)
    return f"{voice} {labels[:spoken]!r}" + f" {NO_TEXT}" * (spoken < len(labels))


def voice_of(key: str) -> str:
    """The voice that a name on disk is of."""
    return key.partition(" ")[0]
