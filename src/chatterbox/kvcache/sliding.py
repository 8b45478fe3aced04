"""Sliding window: the pinned prefix and the newest positions stay, in a cache of fixed memory.

Owns: nothing but its name; it is eviction by age alone. Does not know: slots, trimming; see `evicting`.
"""

from __future__ import annotations

from typing import Any

from chatterbox.config import KVCacheConfig
from chatterbox.kvcache.evicting import EvictingKVCache, windows


class SlidingKVCache(EvictingKVCache):
    """`EvictingKVCache` by its default, which forgets the oldest. Needs to know neither tokens nor queries."""

    @classmethod
    def options(cls, config: KVCacheConfig) -> dict[str, Any]:
        return windows(config)
