"""Preallocated caches: one buffer of keys and one of values for all layers, written in place, never reallocated, and
the exact one of them, the default, in which a slot's index is its position.

Owns: the buffers, what of them layers see, each row's length. Does not know: what rows mean, when a request ends.

What a layer sees is as long as the fullest row, rounded up: shapes change rarely, and the mask hides what a row has not
written.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, KVCache, Segment, require_chain, require_equal_appends, require_finite

if TYPE_CHECKING:
    from typing_extensions import Self


class PreallocatedKVCache(KVCache):
    """Memory fixed at construction: 2 x layers x rows x heads x num_slots x head_dim elements, never moved.

    A pass is under way once the policy's `reserve` has set `_slots`, where each row's new positions go, (rows, new),
    and `_visible`, the positions of the slots that layers see, (slots,) or (rows, slots); both in memory that stays.

    ``extent_step`` is the granularity of what layers see: fine on a CPU, where seeing more costs time, coarse on a GPU,
    where every new shape is another graph.
    """

    _slots: Tensor
    _visible: Tensor

    @property
    def num_slots(self) -> int:
        """Positions that a row can hold at once."""
        return self.capacity

    def _allocate(self) -> None:
        device = self.device
        self.extent_step = 256 if torch.device(device).type == "cuda" else 64
        shape = (self.num_layers, self.num_rows, self.num_heads, self.num_slots, self.head_dim)
        # Not zeros: memory that is not touched is not taken.
        self._keys = torch.empty(shape, dtype=self.dtype, device=device)
        self._values = torch.empty(shape, dtype=self.dtype, device=device)
        self._num_clean = 0  # slots of every row that hold numbers
        self._offsets = torch.arange(self.num_slots, device=device)
        self._row_index = torch.arange(self.num_rows, device=device)[:, None]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    @property
    def extent(self) -> int:
        """Slots that layers see."""
        return self._visible.shape[-1]

    @property
    def step_shape(self) -> Hashable:
        return self.extent

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, slots = self._row_index[: len(self._slots)], self._slots
        kept_keys, kept_values = self._keys[layer, self._rows], self._values[layer, self._rows]
        kept_keys[rows, :, slots] = keys.transpose(1, 2)
        kept_values[rows, :, slots] = values.transpose(1, 2)
        self._num_appends[layer] += 1
        extent = self.extent
        return kept_keys[:, :, :extent], kept_values[:, :, :extent], self._visible

    def empty_like(self, num_rows: int, capacity: int | None = None) -> Self:
        empty = super().empty_like(num_rows, capacity)
        empty.extent_step = self.extent_step
        return empty

    def _put(self, row: int, slot: int, segment: Segment) -> None:
        """Copy a segment into the slots of a row from ``slot`` on."""
        part = slice(slot, slot + len(segment))
        self._keys[:, row, :, part] = segment.keys
        self._values[:, row, :, part] = segment.values

    def _copy_slots(self, row: int, source: Self, source_row: int, num_used: int) -> None:
        """Copy the first ``num_used`` slots of another row."""
        self._expose(num_used)
        self._keys[:, row, :, :num_used] = source._keys[:, source_row, :, :num_used]
        self._values[:, row, :, :num_used] = source._values[:, source_row, :, :num_used]

    def _wipe(self, row: int) -> None:
        self._keys[:, row, :, : self._num_clean] = 0.0
        self._values[:, row, :, : self._num_clean] = 0.0

    def _taken(self, row: int, part: slice, start: int) -> Segment:
        """A copy of the slots ``part`` of a row, whose first holds the position ``start``."""
        return Segment(self._keys[:, row, :, part].clone(), self._values[:, row, :, part].clone(), start)

    def _expose(self, num_used: int) -> int:
        """Make slots visible up to ``num_used``, rounded up, which is returned.

        What a row has not written there is hidden by the mask, that is multiplied by 0: it must be a number.
        """
        extent = min(self.num_slots, -(-num_used // self.extent_step) * self.extent_step)
        if extent > self._num_clean:
            self._keys[:, :, :, self._num_clean : extent] = 0.0
            self._values[:, :, :, self._num_clean : extent] = 0.0
            self._num_clean = extent
        return extent


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
