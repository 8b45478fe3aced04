"""Names and settings to caches. A new policy is one file and one line here."""

from __future__ import annotations

from typing import Any

import torch

from chatterbox.config import KVCacheConfig, PressureConfig
from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.compressed import CompressedKVCache, check_codec
from chatterbox.kvcache.compression import codec
from chatterbox.kvcache.dynamic import DynamicKVCache
from chatterbox.kvcache.evicting import EvictingKVCache
from chatterbox.kvcache.eviction import scorer
from chatterbox.kvcache.headwindow import HeadWindowKVCache
from chatterbox.kvcache.prefix.disk import DiskTier
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.kvcache.prefix.memory_pressure import MemoryMonitor, SystemProbe
from chatterbox.kvcache.prefix.policy import prefix_eviction
from chatterbox.kvcache.sliding import SlidingKVCache
from chatterbox.kvcache.static import StaticKVCache

MIB = 2**20
POLICIES: dict[str, type[KVCache] | None] = {
    "compressed": CompressedKVCache,
    "dynamic": DynamicKVCache,
    "evicting": EvictingKVCache,
    "headwindow": HeadWindowKVCache,
    "none": None,
    "sliding": SlidingKVCache,
    "static": StaticKVCache,
}


def policy(name: str) -> type[KVCache] | None:
    """The cache class called ``name``, None for "none". Raises ValueError if there is no such policy."""
    if name not in POLICIES:
        raise ValueError(f"cache policy {name!r} does not exist; choose from {', '.join(sorted(POLICIES))}")
    return POLICIES[name]


def cache_config(cache_policy: str | KVCacheConfig) -> KVCacheConfig:
    """Settings as they are; a policy's name with the default settings."""
    return KVCacheConfig(policy=cache_policy) if isinstance(cache_policy, str) else cache_policy


def make_cache(
    config: KVCacheConfig, num_layers: int, rows: int, num_heads: int, head_dim: int, capacity: int, **options: Any
) -> KVCache | None:
    """An empty cache as ``config`` says, None for "none"; sizes and options as the constructor of `KVCache`."""
    make = policy(config.policy)
    if make is None:
        return None
    return make(num_layers, rows, num_heads, head_dim, capacity, **options, **make.options(config))


def planned_nbytes(
    config: KVCacheConfig,
    num_layers: int,
    rows: int,
    num_heads: int,
    head_dim: int,
    capacity: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> int:
    """`max_nbytes` of the cache that `make_cache` would make, 0 for "none". Allocates nothing."""
    cache = make_cache(config, num_layers, rows, num_heads, head_dim, capacity, dtype=dtype, device="meta")
    return 0 if cache is None else cache.max_nbytes


def check_names(config: KVCacheConfig) -> None:
    """Raise ValueError if ``config`` names a policy, scorer, codec or prefix eviction policy that does not exist."""
    policy(config.policy)
    scorer(config.eviction)
    codec(config.host_codec)
    check_codec(config.decode_codec)
    prefix_eviction(config.replacement)


def make_monitor(config: PressureConfig, device: torch.device | str | None = None) -> MemoryMonitor | None:
    """A monitor of the system's memory, and of ``device``'s own if it has such; None if ``config`` turns it off."""
    return MemoryMonitor(config, SystemProbe(device)) if config.soft_mib else None


def make_manager(
    config: KVCacheConfig, default_bytes: int, device: torch.device | str | None = None
) -> GlobalKVCacheManager:
    """An empty manager as ``config`` says.

    ``default_bytes``: its budget on the device where ``config`` says None. ``device``: whose memory is watched.
    """
    return GlobalKVCacheManager(
        budget_bytes=default_bytes if config.prefix_mib is None else config.prefix_mib * MIB,
        host_bytes=config.host_mib * MIB,
        host_codec=config.host_codec,
        total_bytes=None if config.total_mib is None else config.total_mib * MIB,
        disk=None if config.disk_folder is None else DiskTier(config.disk_folder, budget_bytes=config.disk_mib * MIB),
        eviction_policy=config.replacement,
        monitor=make_monitor(config.pressure, device),
    )
