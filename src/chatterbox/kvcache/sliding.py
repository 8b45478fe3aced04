"""Sliding window: the pinned prefix and the newest positions stay, in a cache of fixed memory.

Owns: nothing but its name; it is eviction by age alone. Does not know: slots, trimming; see `evicting`.
"""

from __future__ import annotations

from typing import Any

import torch

from chatterbox.config import KVCacheConfig
from chatterbox.kvcache.evicting import EvictingKVCache, windows


class SlidingKVCache(EvictingKVCache):
    """`EvictingKVCache` that forgets the oldest. Needs to know neither tokens nor queries."""

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
        max_cache_size: int = 1024,
        window_size: int = 512,
        uncond_window: int | None = None,
    ) -> None:
        """As `EvictingKVCache`."""
        super().__init__(
            num_layers,
            rows,
            num_heads,
            head_dim,
            capacity,
            dtype=dtype,
            device=device,
            max_cache_size=max_cache_size,
            window_size=window_size,
            uncond_window=uncond_window,
        )

    @classmethod
    def options(cls, config: KVCacheConfig) -> dict[str, Any]:
        return windows(config)

    def _settings(self) -> dict[str, Any]:
        return windows(self)
