"""Growing exact cache: every append makes a larger tensor. What most implementations do, kept as the baseline.

Owns: one tensor of keys and one of values per layer. Does not know: what its rows mean, when a request ends.

A slot is added to every row at once; in rows that did not append, it stays empty for good.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, KVCache, Segment, require_chain, require_finite, require_room

NOWHERE = 2**62  # position of an empty slot: no query reaches it


class DynamicKVCache(KVCache):
    """Exact cache whose memory follows its content. ``capacity`` bounds the length, it allocates nothing."""

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
    ) -> None:
        if min(num_layers, rows, num_heads, head_dim, capacity) < 1:
            raise ValueError(
                "every size of a DynamicKVCache must be at least 1, got "
                f"{num_layers=}, {rows=}, {num_heads=}, {head_dim=}, {capacity=}"
            )
        self._empty = torch.empty(rows, num_heads, 0, head_dim, dtype=dtype, device=device)
        self._num_layers, self._capacity = num_layers, capacity
        self.reset()

    @property
    def row_lens(self) -> tuple[int, ...]:
        return tuple(self._row_lens)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self._keys, *self._values))

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        first, last, _ = rows.indices(len(self._row_lens))
        starts = self._row_lens[first:last]
        require_room(max(starts), new_len, self._capacity)
        self._row_lens[first:last] = [start + new_len for start in starts]
        self._rows = slice(first, last)
        device = self._positions.device
        new = torch.tensor(starts, device=device)[:, None] + torch.arange(new_len, device=device)
        self._positions = F.pad(self._positions, (0, new_len), value=NOWHERE)
        self._positions[self._rows, -new_len:] = new
        self._visible = self._positions[self._rows]
        return new

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        around = (0, 0, 0, 0, 0, 0, self._rows.start, len(self._row_lens) - self._rows.stop)
        self._keys[layer] = torch.cat([self._keys[layer], F.pad(keys, around)], dim=2)
        self._values[layer] = torch.cat([self._values[layer], F.pad(values, around)], dim=2)
        return self._keys[layer][self._rows], self._values[layer][self._rows], self._visible

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        require_room(0, length, self._capacity)
        missing = max(0, length - self._positions.shape[1])
        self._positions = F.pad(self._positions, (0, missing), value=NOWHERE)
        self._positions[row] = NOWHERE
        self._positions[row, :length] = torch.arange(length, device=self._positions.device)
        for store, field in ((self._keys, "keys"), (self._values, "values")):
            for layer in range(self._num_layers):
                store[layer] = F.pad(store[layer], (0, 0, 0, missing))
                for part in segments:
                    store[layer][row, :, part.start : part.end] = getattr(part, field)[layer]
        self._row_lens[row] = length

    def segment(self, row: int, start: int, end: int) -> Segment:
        if not 0 <= start <= end <= self._row_lens[row]:
            raise ValueError(f"row {row} holds {self._row_lens[row]} positions, not {start} to {end}")
        positions = self._positions[row]
        slots = ((positions >= start) & (positions < end)).nonzero()[:, 0]
        keys, values = (torch.stack([part[row][:, slots] for part in s]) for s in (self._keys, self._values))
        return Segment(keys, values, start)

    def move_row(self, source: int, target: int) -> None:
        for part in (*self._keys, *self._values, self._positions):
            part[target] = part[source]
        self._positions[source] = NOWHERE
        self._row_lens[target], self._row_lens[source] = self._row_lens[source], 0

    def reset(self) -> None:
        self._keys = [self._empty] * self._num_layers
        self._values = [self._empty] * self._num_layers
        self._row_lens = [0] * len(self._empty)
        self._positions = torch.empty(len(self._empty), 0, dtype=torch.long, device=self._empty.device)

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} positions to {length}")
        self._positions = self._positions.masked_fill(self._positions >= length, NOWHERE)
        self._row_lens = [min(length, kept) for kept in self._row_lens]
        used = (self._positions != NOWHERE).any(0)
        self._positions = self._positions[:, used]
        self._keys = [part[:, :, used] for part in self._keys]
        self._values = [part[:, :, used] for part in self._values]

    def clone_prefix(self, length: int, capacity: int | None = None) -> DynamicKVCache:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot clone {length} positions of a cache that holds {self.length}")
        rows, heads, _, head_dim = self._empty.shape
        capacity = self._capacity if capacity is None else capacity
        require_room(0, length, capacity)
        clone = DynamicKVCache(
            self._num_layers, rows, heads, head_dim, capacity, dtype=self._empty.dtype, device=self._empty.device
        )
        clone._keys, clone._values = list(self._keys), list(self._values)
        clone._row_lens, clone._positions = list(self._row_lens), self._positions
        clone.crop(length)  # picks slots by index, so what the clone holds is a copy
        return clone

    def check_integrity(self) -> None:
        slots = {part.shape[2] for part in (*self._keys, *self._values)}
        if slots != {self._positions.shape[1]}:
            raise RuntimeError(f"layers of the cache hold {sorted(slots)} slots, {self._positions.shape[1]} are known")
        for keys, values in zip(self._keys, self._values, strict=True):
            require_finite(keys, values)
