"""Name of a cache policy to the cache. A new policy is one file and one line here."""

from __future__ import annotations

from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.dynamic import DynamicKVCache
from chatterbox.kvcache.static import StaticKVCache

POLICIES: dict[str, type[KVCache]] = {"dynamic": DynamicKVCache, "static": StaticKVCache}


def policy(name: str) -> type[KVCache]:
    """The cache class called ``name``. Raises ValueError if there is none."""
    if name not in POLICIES:
        raise ValueError(f"cache policy {name!r} does not exist; choose from {', '.join(sorted(POLICIES))}")
    return POLICIES[name]
