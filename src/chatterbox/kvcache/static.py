"""Preallocated exact cache: rows x capacity, written in place, never reallocated. The default.

Owns: one buffer of keys and one of values for all layers, and each row's length. Does not know: what its rows mean,
when a request ends.

A slot's index is its position. What a layer sees is as long as the longest row, rounded up: shapes change rarely, and
the mask hides what a row has not written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, KVCache, Segment, require_chain, require_finite, require_room

EXTENT_STEP = 64  # positions by which the visible part grows


class StaticKVCache(KVCache):
    """Exact cache with memory fixed at construction: 2 x layers x rows x heads x capacity x head_dim elements.

    ``extent_step`` is the granularity of what layers see; the capacity itself makes every shape constant.
    """

    def __init__(
        self,
        num_layers: int,
        rows: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        extent_step: int = EXTENT_STEP,
    ) -> None:
        if min(num_layers, rows, num_heads, head_dim, capacity, extent_step) < 1:
            raise ValueError(
                "every size of a StaticKVCache must be at least 1, got "
                f"{num_layers=}, {rows=}, {num_heads=}, {head_dim=}, {capacity=}, {extent_step=}"
            )
        shape = (num_layers, rows, num_heads, capacity, head_dim)
        # Not zeros: memory that is not touched is not taken.
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._num_clean = 0  # slots of every row that hold numbers
        self._positions = torch.arange(capacity, device=device)
        self._row_index = torch.arange(rows, device=device)[:, None]
        self._single = torch.zeros(rows, 1, dtype=torch.long, device=device)  # slots of a pass of one position
        self._row_lens = [0] * rows
        self._num_appends = [0] * num_layers
        self._extent_step = extent_step

    @property
    def row_lens(self) -> tuple[int, ...]:
        return tuple(self._row_lens)

    @property
    def capacity(self) -> int:
        return self._keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        first, last, _ = rows.indices(len(self._row_lens))
        starts = self._row_lens[first:last]
        end = max(starts) + new_len
        require_room(end - new_len, new_len, self.capacity)
        self._row_lens[first:last] = [start + new_len for start in starts]
        self._rows = slice(first, last)
        self._slots = self._single[: last - first]
        self._slots.copy_(torch.tensor(starts)[:, None])
        if new_len > 1:
            self._slots = self._slots + self._positions[:new_len]
        self._visible = self._positions[: self._expose(end)]
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
        require_room(0, length, self.capacity)
        self._expose(length)
        for part in segments:
            self._keys[:, row, :, part.start : part.end] = part.keys
            self._values[:, row, :, part.start : part.end] = part.values
        self._row_lens[row] = length

    def segment(self, row: int, start: int, end: int) -> Segment:
        if not 0 <= start <= end <= self._row_lens[row]:
            raise ValueError(f"row {row} holds {self._row_lens[row]} positions, not {start} to {end}")
        part = slice(start, end)
        return Segment(self._keys[:, row, :, part].clone(), self._values[:, row, :, part].clone(), start)

    def move_row(self, source: int, target: int) -> None:
        kept = slice(0, self._row_lens[source])
        self._keys[:, target, :, kept] = self._keys[:, source, :, kept]
        self._values[:, target, :, kept] = self._values[:, source, :, kept]
        self._row_lens[target], self._row_lens[source] = self._row_lens[source], 0

    def reset(self) -> None:
        self._row_lens = [0] * len(self._row_lens)

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} positions to {length}")
        self._row_lens = [min(length, kept) for kept in self._row_lens]

    def clone_prefix(self, length: int, capacity: int | None = None) -> StaticKVCache:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot clone {length} positions of a cache that holds {self.length}")
        layers, rows, heads, own_capacity, head_dim = self._keys.shape
        capacity = own_capacity if capacity is None else capacity
        require_room(0, length, capacity)
        clone = StaticKVCache(
            layers,
            rows,
            heads,
            head_dim,
            capacity,
            dtype=self._keys.dtype,
            device=self._keys.device,
            extent_step=self._extent_step,
        )
        clone._expose(length)
        clone._keys[:, :, :, :length] = self._keys[:, :, :, :length]
        clone._values[:, :, :, :length] = self._values[:, :, :, :length]
        clone._row_lens = [min(length, kept) for kept in self._row_lens]
        return clone

    def _expose(self, length: int) -> int:
        """Make slots visible up to ``length``, rounded up, which is returned.

        What a row has not written there is hidden by the mask, that is multiplied by 0: it must be a number.
        """
        extent = min(self.capacity, -(-length // self._extent_step) * self._extent_step)
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
