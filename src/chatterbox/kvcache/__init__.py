"""Key-value caches for T3: one contract (`base`), one file per policy, names in `factory`; prefixes that
requests share are kept by `prefix.manager`."""

from chatterbox.kvcache.base import KVCache, Segment
from chatterbox.kvcache.compressed import CompressedKVCache
from chatterbox.kvcache.compression.heads import identify_important_heads
from chatterbox.kvcache.compression.prune import compress_cache
from chatterbox.kvcache.dynamic import DynamicKVCache
from chatterbox.kvcache.evicting import EvictingKVCache
from chatterbox.kvcache.factory import (
    POLICIES,
    cache_config,
    check_names,
    make_cache,
    make_manager,
    make_monitor,
    planned_nbytes,
    policy,
)
from chatterbox.kvcache.headwindow import HeadWindowKVCache
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager, Lease
from chatterbox.kvcache.prefix.memory_pressure import MemoryMonitor
from chatterbox.kvcache.sliding import SlidingKVCache
from chatterbox.kvcache.static import StaticKVCache

__all__ = [
    "POLICIES",
    "CompressedKVCache",
    "DynamicKVCache",
    "EvictingKVCache",
    "GlobalKVCacheManager",
    "HeadWindowKVCache",
    "KVCache",
    "Lease",
    "MemoryMonitor",
    "Segment",
    "SlidingKVCache",
    "StaticKVCache",
    "cache_config",
    "check_names",
    "compress_cache",
    "identify_important_heads",
    "make_cache",
    "make_manager",
    "make_monitor",
    "planned_nbytes",
    "policy",
]
