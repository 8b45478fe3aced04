"""Head pruning: a copy of a cache in a share of its bytes, most heads without their middle.

Owns: how much of the share goes to which kind of head. Does not know: which heads matter (`compression.heads`), how
they are kept (`headwindow`).
"""

from __future__ import annotations

import torch

from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.compression.heads import identify_important_heads
from chatterbox.kvcache.headwindow import HeadWindowKVCache


def compress_cache(cache: KVCache, compression_ratio: float = 0.5, *, pinned_len: int = 0) -> HeadWindowKVCache:
    """A copy of ``cache`` in about ``compression_ratio`` of its bytes, which decoding can go on with.

    Half of that share is for the heads that keep everything, the rest for the prefix and the newest positions of the
    others. The copy has room for as many positions as ``cache`` has memory for.

    Args:
        cache: in full precision, and holding all positions: `static` or `dynamic`. It is left as it is.
        compression_ratio: above 0 and below 1.
        pinned_len: first positions that every head keeps.

    Raises:
        ValueError: a ratio out of range, or one that leaves no room for the pinned positions and a step; or positions
            that the cache no longer holds.
    """
    if not 0.0 < compression_ratio < 1.0:
        raise ValueError(f"compression_ratio must be between 0 and 1, got {compression_ratio}; 0.5 halves a cache")
    heads = cache.num_layers * cache.num_heads
    element = torch.empty(0, dtype=cache.dtype).element_size()
    capacity = cache.nbytes // (2 * heads * cache.num_rows * cache.head_dim * element)
    full = int(heads * compression_ratio / 2) / heads
    num_base = int(capacity * (compression_ratio - full) / (1.0 - full)) - 1  # a slot for what no head keeps
    if num_base < pinned_len + 2:
        raise ValueError(
            f"compression_ratio {compression_ratio} leaves {max(0, num_base)} positions to most heads of a cache of "
            f"{capacity}, too few for {pinned_len} pinned ones and a window; raise it"
        )
    small = HeadWindowKVCache(
        cache.num_layers,
        cache.num_rows,
        cache.num_heads,
        cache.head_dim,
        capacity,
        dtype=cache.dtype,
        device=cache.device,
        max_cache_size=num_base,
        window_size=max(1, 3 * (num_base - pinned_len) // 4),
        full_heads=full,
    )
    for row in range(cache.num_rows):
        _copy(cache, small, row, pinned_len)
    return small


def _copy(cache: KVCache, small: HeadWindowKVCache, row: int, pinned_len: int) -> None:
    length = cache.row_lens[row]
    whole = cache.segment(row, 0, length)
    small.load(row, whole[: small.bound])
    small.begin(row, range(min(pinned_len, length)))
    if length <= small.bound:
        return
    scores = identify_important_heads(whole.keys, whole.values, prefix_len=pinned_len, window=small.window_size)
    small.assign_heads(row, scores)
    piece = max(1, (small.bound - pinned_len) // 4)
    for start in range(small.bound, length, piece):
        part = whole[start : start + piece]
        small.reserve(len(part), slice(row, row + 1))
        for layer in range(cache.num_layers):
            small.append(layer, part.keys[layer, None], part.values[layer, None])
