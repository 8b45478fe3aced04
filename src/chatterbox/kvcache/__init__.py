"""Key-value caches for T3: one contract (`base`), one file per policy, names in `registry`.

Owns: keys and values; `prefix` has what requests share. Policies are imported when they are first asked for. Must not
import: `models`, `engine`, `text`, `voice`, `synthesis`, `cli`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from chatterbox.kvcache.base import KVCache, Segment
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager, Lease
from chatterbox.kvcache.prefix.memory_pressure import MemoryMonitor
from chatterbox.kvcache.registry import (
    POLICIES,
    cache_config,
    check_names,
    make_cache,
    make_manager,
    make_monitor,
    planned_nbytes,
    policy,
)
from chatterbox.kvcache.static import StaticKVCache

if TYPE_CHECKING:
    from chatterbox.kvcache.compressed import CompressedKVCache
    from chatterbox.kvcache.compression.heads import identify_important_heads
    from chatterbox.kvcache.compression.prune import compress_cache
    from chatterbox.kvcache.dynamic import DynamicKVCache
    from chatterbox.kvcache.evicting import EvictingKVCache
    from chatterbox.kvcache.headwindow import HeadWindowKVCache
    from chatterbox.kvcache.sliding import SlidingKVCache

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

_HOMES = {
    "CompressedKVCache": "compressed",
    "DynamicKVCache": "dynamic",
    "EvictingKVCache": "evicting",
    "HeadWindowKVCache": "headwindow",
    "SlidingKVCache": "sliding",
    "compress_cache": "compression.prune",
    "identify_important_heads": "compression.heads",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
