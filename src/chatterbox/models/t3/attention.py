"""Attention of one layer over a key-value cache, the same in every backbone.

Owns: what the layers of a run share, the mask that follows from positions, reading where a head looks. Does not know:
how queries, keys and values were made, which cache policy they go to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import KVCache, position_mask


class HeadReader:
    """Where the newest query of some rows looks in a span of positions: attention, averaged over a few heads.

    It is computed from the queries and the visible keys of those heads alone, beside the attention of the pass, which
    it does not touch. Columns are found by position, whatever slots a cache keeps them in.
    """

    def __init__(
        self, heads: tuple[tuple[int, int], ...], rows: Tensor, start: Tensor, length: Tensor, out: Tensor
    ) -> None:
        """For one pass.

        Args:
            heads: (layer, head) of each.
            rows: (N,), which rows of the pass.
            start: (N, 1), where each row's span begins.
            length: (N, 1), of each row's span.
            out: (N, S), is written: attention to the span's columns, 0 beyond its length.
        """
        self._heads, self._rows, self._start, self._length, self._out = heads, rows, start, length, out
        out.zero_()

    def read(self, layer: int, query: Tensor, key: Tensor, positions: Tensor, key_positions: Tensor) -> None:
        """Take a layer in: queries (B, H, T, head_dim) at ``positions``, and what the cache returned for them."""
        width = self._out.shape[1]
        for head in (head for at, head in self._heads if at == layer):
            kept = key_positions[:, head] if key_positions.ndim == 3 else key_positions
            newest, kept = (x[self._rows] if x.ndim == 2 else x for x in (positions[..., -1:], kept))
            column = kept - self._start  # (N, keys)
            column = column.where((column >= 0) & (column < self._length), width)
            scores = (key[:, head] @ query[:, head, -1, :, None])[..., 0]  # (B, keys)
            scores = scores[self._rows].float() * query.shape[-1] ** -0.5
            weights = scores.masked_fill(kept > newest, float("-inf")).softmax(-1) / len(self._heads)
            spread = weights.new_zeros(len(weights), width + 1).scatter_add_(1, column, weights)
            self._out += spread[:, :width]


class Pass:
    """One run over new positions: what all layers share."""

    def __init__(self, positions: Tensor, cache: KVCache | None = None, readers: Sequence[HeadReader] = ()) -> None:
        """``positions``: (B, T) or, where all rows have the same, (T,), absolute."""
        self.positions, self.cache, self.readers = positions, cache, readers
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
        key_positions = run.positions
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        key, value, key_positions = run.cache.append(layer, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=run.mask(key_positions))
        if run.cache.wants_queries:
            run.cache.observe(layer, query)
    for reader in run.readers:
        reader.read(layer, query, key, run.positions, key_positions)
    return mixed.transpose(1, 2).flatten(2)
