"""Preallocated exact cache: rows x capacity, written in place, never reallocated. The default.

Owns: each row's length. Does not know: what its rows mean, when a request ends.

A slot's index is its position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, Segment, require_chain, require_equal_appends, require_finite
from chatterbox.kvcache.slotted import SlottedKVCache


class StaticKVCache(SlottedKVCache):
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

    def move_row(self, source: int, target: int) -> None:
        kept = slice(0, self._row_lens[source])
        self._keys[:, target, :, kept] = self._keys[:, source, :, kept]
        self._values[:, target, :, kept] = self._values[:, source, :, kept]
        self._row_lens[target], self._row_lens[source] = self._row_lens[source], 0

    def reset(self) -> None:
        self._row_lens = [0] * self.num_rows

    def crop(self, length: int) -> None:
        self._require_held(length)
        self._row_lens = [min(length, kept) for kept in self._row_lens]

    def clone_prefix(self, length: int, capacity: int | None = None) -> StaticKVCache:
        self._require_held(length)
        clone = self._empty_like(capacity)
        clone._require_room(0, length)
        clone._expose(length)
        clone._keys[:, :, :, :length] = self._keys[:, :, :, :length]
        clone._values[:, :, :, :length] = self._values[:, :, :, :length]
        clone._row_lens = [min(length, kept) for kept in self._row_lens]
        return clone

    def check_integrity(self) -> None:
        require_equal_appends(self._num_appends)
        for row, kept in enumerate(self._row_lens):
            require_finite(self._keys[:, row, :, :kept], self._values[:, row, :, :kept])
