"""Key-value caches for T3: one contract (`base`), one file per policy."""

from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.static import StaticKVCache

__all__ = ["KVCache", "StaticKVCache"]
