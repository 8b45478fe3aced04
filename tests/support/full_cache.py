"""What policies that forget are compared with: every key and value stays where it was written, and layers get those
positions that the policy says it holds.

The policy runs along, so that it decides as it would alone; of what it stores, nothing is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.engine.request import allocate_cache
from chatterbox.kvcache import KVCache, Segment, StaticKVCache
from chatterbox.kvcache.base import ALL_ROWS, NOWHERE
from chatterbox.models.t3 import T3


class FullCache(StaticKVCache):
    """An exact cache that shows what ``policy`` holds, in as many slots as ``policy`` shows, so that sums are equal."""

    policy: KVCache
    trims: int = 0  # times that the policy forgot something

    @classmethod
    def beside(cls, t3: T3, rows: int, capacity: int, config: KVCacheConfig) -> FullCache:
        policy, weight, sizes = allocate_cache(t3, rows, capacity, config), t3.speech_head.weight, t3.hp.backbone
        full = cls(sizes.num_layers, rows, sizes.num_heads, sizes.head_dim, capacity, dtype=weight.dtype)
        full.policy, full.wants_tokens, full.wants_queries = policy, policy.wants_tokens, policy.wants_queries
        return full

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        positions, before = super().reserve(new_len, rows), sum(map(len, self._holds()))
        assert torch.equal(self.policy.reserve(new_len, rows), positions)
        places = range(self.num_rows)[rows]
        self.trims += sum(map(len, self._holds())) < before + new_len * len(places)
        return positions

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shown = self.policy.append(layer, keys, values)[2]
        lens = torch.tensor(self._row_lens[self._rows])
        shown = shown.where(shown < lens.view(-1, *[1] * (shown.ndim - 1)), NOWHERE)
        if shown.ndim == 2:  # where heads hold positions of their own, `held` is what is common to them
            assert [sorted(row[row != NOWHERE].tolist()) for row in shown] == self._holds()[self._rows]
        kept = super().append(layer, keys, values)[:2]
        index = shown.where(shown != NOWHERE, 0)
        index = (index if shown.ndim == 3 else index[:, None]).expand(-1, self.num_heads, -1)[..., None]
        keys, values = (part.gather(2, index.expand(-1, -1, -1, self.head_dim)) for part in kept)
        return keys, values, shown

    def _holds(self) -> list[list[int]]:
        return [self.policy.held(row) for row in range(self.num_rows)]

    def require_pinned(self, *pinned: range) -> None:
        self.policy.require_pinned(*pinned)

    def begin(self, row: int, *pinned: range, is_conditional: bool = True) -> None:
        self.policy.begin(row, *pinned, is_conditional=is_conditional)

    def note_tokens(self, tokens: Tensor) -> None:
        self.policy.note_tokens(tokens)

    def observe(self, layer: int, queries: Tensor) -> None:
        self.policy.observe(layer, queries)

    def load(self, row: int, *segments: Segment) -> None:
        super().load(row, *segments)
        self.policy.load(row, *segments)

    def crop(self, length: int) -> None:
        super().crop(length)
        self.policy.crop(length)

    def take_row(self, row: int, source: KVCache, source_row: int) -> None:
        assert isinstance(source, FullCache)
        super().take_row(row, source, source_row)
        self.policy.take_row(row, source.policy, source_row)

    def clear_row(self, row: int, *, wipe: bool = False) -> None:
        super().clear_row(row, wipe=wipe)
        self.policy.clear_row(row, wipe=wipe)

    def reset(self) -> None:
        super().reset()
        self.policy.reset()

    def empty_like(self, num_rows: int, capacity: int | None = None) -> FullCache:
        empty = super().empty_like(num_rows, capacity)
        empty.policy = self.policy.empty_like(num_rows, capacity)
        empty.wants_tokens, empty.wants_queries = self.wants_tokens, self.wants_queries
        return empty
