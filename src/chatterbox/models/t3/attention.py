"""Attention of one layer over a key-value cache, the same in every backbone.

Owns: what the layers of a run share, the mask that follows from positions, reading where a head looks. Does not know:
how queries, keys and values were made, which cache policy they go to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import KVCache, position_mask
from chatterbox.models.t3.batch_invariant import Output, attend_in_blocks, hidden_blocks, in_blocks, look_in_blocks


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

    def read(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        positions: Tensor,
        key_positions: Tensor,
        *,
        batch_invariant: bool = False,
    ) -> None:
        """Take a layer in: queries (B, H, T, head_dim) at ``positions``, and what the cache returned for them."""
        width = self._out.shape[1]
        for head in (head for at, head in self._heads if at == layer):
            kept = key_positions[:, head] if key_positions.ndim == 3 else key_positions
            newest, kept = (x[self._rows] if x.ndim == 2 else x for x in (positions[..., -1:], kept))
            column = kept - self._start  # (N, keys)
            column = column.where((column >= 0) & (column < self._length), width)
            if batch_invariant:
                one = slice(head, head + 1)
                mask = torch.atleast_2d(kept <= newest)[:, None, None]  # (N, 1, 1, keys)
                looks = look_in_blocks(query[self._rows, one, -1:], key[self._rows, one], mask)[:, 0, 0]
            else:
                scores = (key[:, head] @ query[:, head, -1, :, None])[..., 0]  # (B, keys)
                scores = scores[self._rows].float() * query.shape[-1] ** -0.5
                looks = scores.masked_fill(kept > newest, float("-inf")).softmax(-1)
            weights = looks / len(self._heads)
            spread = weights.new_zeros(len(weights), width + 1).scatter_add_(1, column, weights)
            self._out += spread[:, :width]


class Pass:
    """One run over new positions: what all layers share."""

    def __init__(
        self,
        positions: Tensor,
        cache: KVCache | None = None,
        readers: Sequence[HeadReader] = (),
        *,
        batch_invariant: bool = False,
    ) -> None:
        """Args:
        positions: (B, T) or, where all rows have the same, (T,), absolute.
        batch_invariant: whether a position gets the bits that it gets alone, at the price of fixed blocks.
        """
        self.positions, self.cache, self.readers, self.batch_invariant = positions, cache, readers, batch_invariant
        self._masked: Tensor | None = None  # the key positions that the mask is for

    def mask(self, key_positions: Tensor) -> Tensor:
        """(B, 1, T, keys), or `hidden_blocks` of it; once for all layers that keep the same positions."""
        if self._masked is not key_positions:
            positions = self.positions if self.positions.ndim == 2 else self.positions[None]
            mask = position_mask(positions, key_positions)
            self._masked, self._mask = key_positions, hidden_blocks(mask) if self.batch_invariant else mask
        return self._mask

    def rowwise(self, layer: Callable[[Tensor], Output], x: Tensor) -> Output:
        """``layer``, which maps positions apart, of (B, T, hidden)."""
        return in_blocks(layer, x) if self.batch_invariant else layer(x)


def positions_of(embeds: Tensor, cache: KVCache | None) -> Tensor:
    """Where ``embeds`` (B, T, hidden) stand: reserved behind the cache's content, or (T,) from 0 without one."""
    num_new = embeds.shape[1]
    return torch.arange(num_new, device=embeds.device) if cache is None else cache.reserve(num_new)


def attend(query: Tensor, key: Tensor, value: Tensor, run: Pass, layer: int) -> Tensor:
    """Append keys and values to the run's cache and attend to all it holds; without one, to themselves.

    (B, H, T, head_dim) each, to (B, T, H * head_dim).
    """
    key_positions = run.positions
    if run.cache is not None:
        key, value, key_positions = run.cache.append(layer, key, value)
    if run.batch_invariant:
        mixed = attend_in_blocks(query, key, value, run.mask(key_positions))
    elif run.cache is None:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=run.mask(key_positions))
    if run.cache is not None and run.cache.wants_queries:
        run.cache.observe(layer, query)
    for reader in run.readers:
        reader.read(layer, query, key, run.positions, key_positions, batch_invariant=run.batch_invariant)
    return mixed.transpose(1, 2).flatten(2)
