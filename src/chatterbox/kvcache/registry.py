"""Names and settings to caches, scorers and codecs. A new policy is one file and one line here.

Owns: names; what is named is imported when it is asked for. Does not know: what a policy does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from chatterbox.config import KVCacheConfig, PressureConfig
from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.compression import codec
from chatterbox.kvcache.prefix.disk import DiskTier
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.kvcache.prefix.memory_pressure import MemoryMonitor, SystemProbe
from chatterbox.kvcache.prefix.tiers import prefix_eviction
from chatterbox.runtime.torch_context import ShapesAlone
from chatterbox.values import word

MIB = 2**20
POLICIES: dict[str, str] = {
    "compressed": "compressed.CompressedKVCache",
    "dynamic": "dynamic.DynamicKVCache",
    "evicting": "evicting.EvictingKVCache",
    "headwindow": "headwindow.HeadWindowKVCache",
    "none": "",  # no cache
    "sliding": "sliding.SlidingKVCache",
    "static": "static.StaticKVCache",
}


def policy(name: str) -> type[KVCache] | None:
    """The cache class called ``name``, None for "none". Raises ValueError if there is no such policy."""
    if name not in POLICIES:
        raise ValueError(f"cache policy {name!r} does not exist; choose from {', '.join(sorted(POLICIES))}")
    return _named(POLICIES[name]) if POLICIES[name] else None


def _named(path: str) -> Any:
    """What ``MODULE.NAME`` of this package names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(f"chatterbox.kvcache.{module}"), name)


def cache_config(cache_policy: str | KVCacheConfig) -> KVCacheConfig:
    """Settings as they are; a policy's name with the default settings. Raises ValueError if it is neither."""
    if isinstance(cache_policy, KVCacheConfig):
        return cache_policy
    return KVCacheConfig(policy=word("kvcache", cache_policy, "give a policy's name or a KVCacheConfig"))


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
    with ShapesAlone():
        cache = make_cache(config, num_layers, rows, num_heads, head_dim, capacity, dtype=dtype, device="meta")
    return 0 if cache is None else cache.max_nbytes


def check_names(config: KVCacheConfig) -> None:
    """Raise ValueError if ``config`` names a policy, scorer, codec or prefix eviction policy that does not exist."""
    policy(config.policy)
    codec(config.host_codec)
    prefix_eviction(config.replacement)
    # Of policies that are not in use too: a name that is wrong stays wrong.
    _named("eviction.scorer")(config.eviction)
    _named("compressed.check_codec")(config.decode_codec)


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
