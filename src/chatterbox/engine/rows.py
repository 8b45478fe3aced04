"""Which rows of a decoder belong to whom.

Owns: taking, freeing and moving rows, so that those of a step are the first ones. Does not know: what a row holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from chatterbox.engine.decoder import RowDecoder


class RowOwner(Protocol):
    rows: list[int]


class RowTable:
    """Rows of running requests in front, packed; those of others behind; the rest free.

    Moving a row needs a free one beside it, unless its place is free already: a decoder has one row more than is used,
    or nobody who is not running.
    """

    def __init__(self, decoder: RowDecoder) -> None:
        self._decoder = decoder
        self._owners: dict[int, RowOwner] = {}

    @property
    def num_used(self) -> int:
        return len(self._owners)

    def take(self, owner: RowOwner, num: int, first: int) -> None:
        """Give ``owner`` the rows from ``first`` on; whoever is there makes way."""
        for row in range(first, first + num):
            self._vacate(row, behind=first + num)
            self._owners[row] = owner
            owner.rows.append(row)

    def free(self, owner: RowOwner, *, wipe: bool = False) -> None:
        """Forget the rows of ``owner``; ``wipe`` as `RowDecoder.clear_row`."""
        for row in owner.rows:
            self._decoder.clear_row(row, wipe=wipe)
            del self._owners[row]
        owner.rows.clear()

    def pack(self, *groups: Sequence[RowOwner]) -> None:
        """Bring the rows of the groups' owners to the front, one group behind the other, with few moves."""
        first, end = 0, sum(len(owner.rows) for group in groups for owner in group)
        for group in groups:
            wanted = range(first, first + sum(len(owner.rows) for owner in group))
            held = {row for owner in group for row in owner.rows}
            holes = (row for row in wanted if row not in held)
            for row, hole in zip(sorted(held.difference(wanted)), holes, strict=True):
                self._vacate(hole, behind=end)
                self._move(row, hole)
            first = wanted.stop

    def _vacate(self, row: int, behind: int) -> None:
        if row in self._owners:
            rows: Iterable[int] = (*range(behind, self._decoder.num_rows), *range(behind))
            self._move(row, next(free for free in rows if free not in self._owners))

    def _move(self, source: int, target: int) -> None:
        self._decoder.move_row(source, target)
        owner = self._owners[target] = self._owners.pop(source)
        owner.rows[owner.rows.index(source)] = target
