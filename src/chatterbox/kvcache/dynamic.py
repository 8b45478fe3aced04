"""Growing exact cache: every append makes a larger tensor. What most implementations do, kept as the baseline.

Owns: one tensor of keys and one of values per layer. Does not know: what its rows mean, when a request ends.

A slot's index is its position. Layers are as wide as the longest row: an append widens them, a row that leaves narrows
them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, KVCache, Segment, require_chain, require_equal_appends, require_finite

if TYPE_CHECKING:
    from typing_extensions import Self


class DynamicKVCache(KVCache):
    """Exact cache whose memory follows its content. ``capacity`` bounds the length, it allocates nothing."""

    _slots: Tensor  # of the pass under way, (rows, new)

    def _allocate(self) -> None:
        nothing = torch.empty(self.num_rows, self.num_heads, 0, self.head_dim, dtype=self.dtype, device=self.device)
        self._keys, self._values = [nothing] * self.num_layers, [nothing] * self.num_layers
        self._row_index = torch.arange(self.num_rows, device=self.device)[:, None]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self._keys, *self._values))

    @property
    def max_nbytes(self) -> int:
        element = self._keys[0].element_size()
        return 2 * self.num_layers * self.num_rows * self.num_heads * self.capacity * self.head_dim * element

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        starts = self._advance(new_len, rows)
        self._slots = torch.tensor(starts, device=self.device)[:, None] + torch.arange(new_len, device=self.device)
        self._visible = torch.arange(self.length, device=self.device)
        return self._slots

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = (self._row_index[: len(self._slots)], slice(None), self._slots)
        for store, new in ((self._keys, keys), (self._values, values)):
            store[layer] = self._fitted(store[layer])
            store[layer][self._rows][index] = new.transpose(1, 2)
        self._num_appends[layer] += 1
        return self._keys[layer][self._rows], self._values[layer][self._rows], self._visible

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        self._set_len(row, length)
        for part in segments:
            for layer in range(self.num_layers):
                self._keys[layer][row, :, part.start : part.end] = part.keys[layer]
                self._values[layer][row, :, part.start : part.end] = part.values[layer]

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
        keys, values = (torch.stack([part[row, :, start:end] for part in s]) for s in (self._keys, self._values))
        return Segment(keys, values, start)

    def check_integrity(self) -> None:
        require_equal_appends(self._num_appends)
        for keys, values in zip(self._keys, self._values, strict=True):
            if {keys.shape[2], values.shape[2]} != {self.length}:
                raise RuntimeError(f"layers of the cache hold {keys.shape[2]} slots, the longest row {self.length}")
            for row, length in enumerate(self._row_lens):
                require_finite(keys[row, :, :length], values[row, :, :length])

    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        self._set_len(row, length)
        for mine, theirs in ((self._keys, source._keys), (self._values, source._values)):
            for layer in range(self.num_layers):
                mine[layer][row, :, :length] = theirs[layer][source_row, :, :length]

    def _empty(self, row: int) -> None:
        self._set_len(row, 0)

    def _wipe(self, row: int) -> None:
        for part in (*self._keys, *self._values):
            part[row] = 0.0

    def _cut(self, row: int, length: int) -> None:
        self._set_len(row, length)

    def _set_len(self, row: int, length: int) -> None:
        """Set a row's length and the width of all layers, which are the longest row's."""
        self._row_lens[row] = length
        if any(part.shape[2] != self.length for part in (*self._keys, *self._values)):
            self._keys, self._values = ([self._fitted(part) for part in s] for s in (self._keys, self._values))

    @torch.inference_mode(False)  # as memory that is allocated once
    def _fitted(self, part: Tensor) -> Tensor:
        """A copy as wide as the longest row, zeros where there was nothing."""
        return F.pad(part, (0, 0, 0, self.length - part.shape[2]))
