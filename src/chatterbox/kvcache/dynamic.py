"""Growing exact cache: every append makes a larger tensor. What most implementations do, kept as the baseline.

Owns: one tensor of keys and one of values per layer. Does not know: what its rows mean, when a request ends.

A slot is added to every row at once; in rows that did not append, it stays empty for good.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, NOWHERE, KVCache, Segment, require_chain, require_finite


class DynamicKVCache(KVCache):
    """Exact cache whose memory follows its content. ``capacity`` bounds the length, it allocates nothing."""

    _positions: Tensor  # of the slots, (rows, slots)

    def _allocate(self) -> None:
        self._empty = torch.empty(self.num_rows, self.num_heads, 0, self.head_dim, dtype=self.dtype, device=self.device)
        self.reset()

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self._keys, *self._values))

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        starts = self._advance(new_len, rows)
        device = self._positions.device
        new = torch.tensor(starts, device=device)[:, None] + torch.arange(new_len, device=device)
        self._positions = F.pad(self._positions, (0, new_len), value=NOWHERE)
        self._positions[self._rows, -new_len:] = new
        self._visible = self._positions[self._rows]
        return new

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        around = (0, 0, 0, 0, 0, 0, self._rows.start, self.num_rows - self._rows.stop)
        self._keys[layer] = torch.cat([self._keys[layer], F.pad(keys, around)], dim=2)
        self._values[layer] = torch.cat([self._values[layer], F.pad(values, around)], dim=2)
        return self._keys[layer][self._rows], self._values[layer][self._rows], self._visible

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        missing = max(0, length - self._positions.shape[1])
        self._positions = F.pad(self._positions, (0, missing), value=NOWHERE)
        self._positions[row] = NOWHERE
        self._positions[row, :length] = torch.arange(length, device=self._positions.device)
        for store, field in ((self._keys, "keys"), (self._values, "values")):
            for layer in range(self.num_layers):
                store[layer] = F.pad(store[layer], (0, 0, 0, missing))
                for part in segments:
                    store[layer][row, :, part.start : part.end] = getattr(part, field)[layer]
        self._row_lens[row] = length

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
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
        self._keys = [self._empty] * self.num_layers
        self._values = [self._empty] * self.num_layers
        self._row_lens = [0] * self.num_rows
        self._positions = torch.empty(self.num_rows, 0, dtype=torch.long, device=self._empty.device)

    def crop(self, length: int) -> None:
        self._require_held(length)
        self._positions = self._positions.masked_fill(self._positions >= length, NOWHERE)
        self._row_lens = [min(length, kept) for kept in self._row_lens]
        used = (self._positions != NOWHERE).any(0)
        self._positions = self._positions[:, used]
        self._keys = [part[:, :, used] for part in self._keys]
        self._values = [part[:, :, used] for part in self._values]

    def clone_prefix(self, length: int, capacity: int | None = None) -> DynamicKVCache:
        self._require_held(length)
        clone = self._empty_like(capacity)
        clone._require_room(0, length)
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
