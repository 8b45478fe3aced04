"""Prefixes on disk: what they are called there, and which part of a file is of use.

Owns: names of whole prefixes, slices of what is stored. Does not know: files (`disk`), the tree, locks.

Files hold whole prefixes, so that each is of use alone.
"""

from __future__ import annotations

import torch

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix.disk import DiskTier
from chatterbox.kvcache.prefix.tree import NO_TEXT, Label, Match


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
