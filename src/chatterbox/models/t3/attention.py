"""Attention of one layer over a key-value cache, the same in every backbone.

Owns: what the layers of a run share, the mask that follows from positions. Does not know: how queries, keys and values
were made, which cache policy they go to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import KVCache, position_mask


class Pass:
    """One run over new positions: what all layers share."""

    def __init__(self, positions: Tensor, cache: KVCache | None = None) -> None:
        """``positions``: (B, T) or, where all rows have the same, (T,), absolute."""
        self.positions, self.cache = positions, cache
        self._masked: Tensor | None = None  # the key positions that the mask is for

    def mask(self, key_positions: Tensor) -> Tensor:
        """(B, 1, T, keys), computed once for all layers that keep the same positions."""
        if self._masked is not key_positions:
            self._masked, self._mask = key_positions, position_mask(self.positions, key_positions)
        return self._mask


def positions_of(embeds: Tensor, cache: KVCache | None) -> Tensor:
    """Where ``embeds`` (B, T, hidden) stand: reserved behind the cache's content, or (T,) from 0 without one."""
    num_new = embeds.shape[1]
    return torch.arange(num_new, device=embeds.device) if cache is None else cache.reserve(num_new)


def attend(query: Tensor, key: Tensor, value: Tensor, run: Pass, layer: int) -> Tensor:
    """Append keys and values to the run's cache and attend to all it holds; without one, to themselves.

    (B, H, T, head_dim) each, to (B, T, H * head_dim).
    """
    if run.cache is None:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        key, value, key_positions = run.cache.append(layer, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=run.mask(key_positions))
        if run.cache.wants_queries:
            run.cache.observe(layer, query)
    return mixed.transpose(1, 2).flatten(2)
