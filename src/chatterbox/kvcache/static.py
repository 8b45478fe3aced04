"""Preallocated exact cache: rows x capacity, written in place, never reallocated. The default.

Owns: one buffer of keys and one of values for all layers, and each row's length. Does not know: what its rows mean,
when a request ends.

A slot's index is its position. What a layer sees is as long as the longest row, rounded up: shapes change rarely, and
the mask hides what a row has not written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, KVCache, Segment, require_chain, require_finite


class StaticKVCache(KVCache):
    """Exact cache with memory fixed at construction: 2 x layers x rows x heads x capacity x head_dim elements.

    ``extent_step`` is the granularity of what layers see: fine on a CPU, where seeing more costs time, coarse on a GPU,
    where every new shape is another graph.
    """

    def _allocate(self) -> None:
        rows, capacity, dtype, device = self.num_rows, self.capacity, self.dtype, self.device
        self.extent_step = 256 if torch.device(device).type == "cuda" else 64
        shape = (self.num_layers, rows, self.num_heads, capacity, self.head_dim)
        # Not zeros: memory that is not touched is not taken.
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._num_clean = 0  # slots of every row that hold numbers
        self._positions = torch.arange(capacity, device=device)
        self._row_index = torch.arange(rows, device=device)[:, None]
        self._single = torch.zeros(rows, 1, dtype=torch.long, device=device)  # slots of a pass of one position
        self._num_appends = [0] * self.num_layers

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    @property
    def step_shape(self) -> int:
        """Positions that layers see."""
        return len(self._visible)

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        starts = self._advance(new_len, rows)
        self._slots = self._single[: len(starts)]
        self._slots.copy_(torch.tensor(starts)[:, None])
        if new_len > 1:
            self._slots = self._slots + self._positions[:new_len]
        self._visible = self._positions[: self._expose(max(starts) + new_len)]
        return self._slots

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, slots = self._row_index[: len(self._slots)], self._slots
        kept_keys, kept_values = self._keys[layer, self._rows], self._values[layer, self._rows]
        kept_keys[rows, :, slots] = keys.transpose(1, 2)
        kept_values[rows, :, slots] = values.transpose(1, 2)
        self._num_appends[layer] += 1
        extent = len(self._visible)
        return kept_keys[:, :, :extent], kept_values[:, :, :extent], self._visible

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        self._expose(length)
        for part in segments:
            self._keys[:, row, :, part.start : part.end] = part.keys
            self._values[:, row, :, part.start : part.end] = part.values
        self._row_lens[row] = length

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
        part = slice(start, end)
        return Segment(self._keys[:, row, :, part].clone(), self._values[:, row, :, part].clone(), start)

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

    def _expose(self, length: int) -> int:
        """Make slots visible up to ``length``, rounded up, which is returned.

        What a row has not written there is hidden by the mask, that is multiplied by 0: it must be a number.
        """
        extent = min(self.capacity, -(-length // self.extent_step) * self.extent_step)
        if extent > self._num_clean:
            self._keys[:, :, :, self._num_clean : extent] = 0.0
            self._values[:, :, :, self._num_clean : extent] = 0.0
            self._num_clean = extent
        return extent

    def check_integrity(self) -> None:
        if len(set(self._num_appends)) != 1:
            raise RuntimeError(f"layers of the cache were appended to unequally often: {self._num_appends}")
        for row, kept in enumerate(self._row_lens):
            require_finite(self._keys[:, row, :, :kept], self._values[:, row, :, :kept])
