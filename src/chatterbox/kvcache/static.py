"""Preallocated exact cache: rows x capacity, written in place, never reallocated. The default.

Owns: each row's length. Does not know: what its rows mean, when a request ends.

A slot's index is its position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, Segment, require_chain, require_equal_appends, require_finite
from chatterbox.kvcache.preallocated import PreallocatedKVCache

if TYPE_CHECKING:
    from typing_extensions import Self


class StaticKVCache(PreallocatedKVCache):
    """Exact cache with a slot for every position up to `capacity`."""

    def _allocate(self) -> None:
        super()._allocate()
        # Slots of a pass of one position.
        self._single = torch.zeros(self.num_rows, 1, dtype=torch.long, device=self.device)

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        starts = self._advance(new_len, rows)
        self._slots = self._single[: len(starts)]
        self._slots.copy_(torch.tensor(starts)[:, None])
        if new_len > 1:
            self._slots = self._slots + self._offsets[:new_len]
        self._visible = self._offsets[: self._expose(max(starts) + new_len)]
        return self._slots

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        self._expose(length)
        for part in segments:
            self._put(row, part.start, part)
        self._row_lens[row] = length

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
        return self._taken(row, slice(start, end), start)

    def check_integrity(self) -> None:
        require_equal_appends(self._num_appends)
        for row, kept in enumerate(self._row_lens):
            require_finite(self._keys[:, row, :, :kept], self._values[:, row, :, :kept])

    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        self._copy_slots(row, source, source_row, length)
        self._row_lens[row] = length

    def _empty(self, row: int) -> None:
        self._row_lens[row] = 0

    def _cut(self, row: int, length: int) -> None:
        self._row_lens[row] = length
