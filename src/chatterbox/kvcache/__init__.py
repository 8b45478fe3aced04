"""Key-value caches for T3: one contract (`base`), one file per policy, names in `factory`."""

from chatterbox.kvcache.base import KVCache, Segment
from chatterbox.kvcache.dynamic import DynamicKVCache
from chatterbox.kvcache.factory import POLICIES, policy
from chatterbox.kvcache.static import StaticKVCache

__all__ = ["POLICIES", "DynamicKVCache", "KVCache", "Segment", "StaticKVCache", "policy"]
