"""Preallocated exact cache: rows x capacity, written in place, never reallocated.

Owns: one buffer of keys and one of values for all layers. Does not know: what its rows mean, when a request ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.kvcache.base import KVCache, require_room


class StaticKVCache(KVCache):
    """Exact cache with memory fixed at construction: 2 x layers x rows x heads x capacity x head_dim elements."""

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
                "every size of a StaticKVCache must be at least 1, got "
                f"{num_layers=}, {rows=}, {num_heads=}, {head_dim=}, {capacity=}"
            )
        shape = (num_layers, rows, num_heads, capacity, head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._positions = torch.arange(capacity, device=device)
        self._layer_lens = [0] * num_layers

    @property
    def length(self) -> int:
        return self._layer_lens[-1]

    @property
    def capacity(self) -> int:
        return self._keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = self._layer_lens[layer]
        require_room(start, keys.shape[2], self.capacity)
        end = start + keys.shape[2]
        self._keys[layer, :, :, start:end] = keys
        self._values[layer, :, :, start:end] = values
        self._layer_lens[layer] = end
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end], self._positions[:end]

    def reset(self) -> None:
        self._layer_lens = [0] * len(self._layer_lens)

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} positions to {length}")
        self._layer_lens = [length] * len(self._layer_lens)

    def clone_prefix(self, length: int, capacity: int | None = None) -> StaticKVCache:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot clone {length} positions of a cache that holds {self.length}")
        layers, rows, heads, own_capacity, head_dim = self._keys.shape
        clone = StaticKVCache(
            layers, rows, heads, head_dim, capacity or own_capacity, dtype=self._keys.dtype, device=self._keys.device
        )
        require_room(0, length, clone.capacity)
        clone._keys[:, :, :, :length] = self._keys[:, :, :, :length]
        clone._values[:, :, :, :length] = self._values[:, :, :, :length]
        clone._layer_lens = [length] * layers
        return clone

    def check_integrity(self) -> None:
        if len(set(self._layer_lens)) != 1:
            raise RuntimeError(f"layers of the cache disagree on their length: {self._layer_lens}")
        for name, buffer in (("key", self._keys), ("value", self._values)):
            if not torch.isfinite(buffer[:, :, :, : self.length]).all():
                raise RuntimeError(f"the cache holds a {name} that is not finite")
