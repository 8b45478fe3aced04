"""Sums in one order, whatever is computed beside: the same bits for a position in a batch and alone.

Owns: products of a fixed number of rows, attention of a fixed number of queries to fixed blocks of keys, activations
whose bits do not depend on the place. Does not know: which layers are called, caches, when this is wanted
(`chatterbox.models.t3.attention.Pass`).

Kernels are chosen, and sums are split, by the shape of what is multiplied. Here every product has one shape, and zeros
fill it up, so that kernels see the same shapes at every number of rows, positions and keys. What is left to kernels is
that a row's bits do not depend on its place in a block; tests/unit/models/test_batch_invariant.py holds them to it.
Norms sum each row apart, and need nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# As benchmarks have them: more rows cost a step of few rows more, fewer cost a prefill more (docs/architecture.md).
ROWS, QUERIES, KEYS = 16, 4, 64

Output = TypeVar("Output", Tensor, tuple[Tensor, ...])


def in_blocks(layer: Callable[[Tensor], Output], x: Tensor) -> Output:
    """``layer``, which maps rows apart, of (..., in): it sees (1, ROWS, in) at a time."""
    rows = x.flatten(0, -2)
    blocks = F.pad(rows, (0, 0, 0, -len(rows) % ROWS)).split(ROWS)
    outputs = [layer(block[None]) for block in blocks]

    def joined(*parts: Tensor) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return whole[0, : len(rows)].unflatten(0, x.shape[:-1])

    if isinstance(outputs[0], tuple):
        return tuple(joined(*parts) for parts in zip(*outputs, strict=True))
    return joined(*outputs)


def hidden_blocks(mask: Tensor) -> Tensor:
    """What `attend_in_blocks` takes of a mask (B, heads, T, keys), True where a query may look.

    Returns:
        (blocks, B, heads, T', KEYS), True where a query may not look; T' is a multiple of QUERIES.
    """
    num_queries, num_keys = mask.shape[2:]
    hidden = F.pad(~mask, (0, -num_keys % KEYS, 0, -num_queries % QUERIES), value=True)
    return hidden.unflatten(-1, (-1, KEYS)).permute(3, 0, 1, 2, 4)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
    """Attention of (B, H, T, head_dim) to (B, H, keys, head_dim); ``hidden`` of `hidden_blocks`."""
    values = _key_blocks(value)
    mixed = []
    for weights in _weights(query, key, hidden):
        parts = [torch.bmm(part.flatten(0, 1), block) for part, block in zip(weights, values, strict=True)]
        sums = torch.cat([torch.stack(parts).view(*weights.shape[:-1], -1), weights.sum(-1, keepdim=True)], dim=-1)
        total = _fold(sums)  # (B, H, QUERIES, head_dim + 1)
        mixed.append(total[..., :-1] / total[..., -1:])
    return torch.cat(mixed, dim=2)[:, :, : query.shape[2]].to(query.dtype)


def look_in_blocks(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Where the queries of `attend_in_blocks` look: (B, H, T, keys). ``mask``: as `hidden_blocks` takes it."""
    looks = []
    for weights in _weights(query, key, hidden_blocks(mask)):
        shares = weights / _fold(weights.sum(-1, keepdim=True))
        looks.append(shares.permute(1, 2, 3, 0, 4).flatten(3))
    return torch.cat(looks, dim=2)[:, :, : query.shape[2], : key.shape[2]]


def silu(x: Tensor) -> Tensor:
    """`F.silu`, which takes other instructions for what is left over at the end of a vector."""
    wide = _wide(x)
    return (wide / (1 + (-wide).exp())).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """`F.gelu` with the tanh approximation; for the reason see `silu`."""
    wide = _wide(x)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (0.5 * wide * (1 + inner.tanh())).to(x.dtype)


def _weights(query: Tensor, key: Tensor, hidden: Tensor) -> list[Tensor]:
    """exp(score - highest), (blocks, B, H, QUERIES, KEYS), for each block of queries.

    The highest score is the same in any order, and what is hidden weighs exactly 0. Queries that fill up a block come
    out as NaN, and are not used.
    """
    query = _wide(query) * query.shape[-1] ** -0.5
    query = F.pad(query, (0, 0, 0, -query.shape[2] % QUERIES))
    keys = [block.transpose(1, 2) for block in _key_blocks(key)]
    weights = []
    for part, out_of_sight in zip(query.split(QUERIES, dim=2), hidden.split(QUERIES, dim=3), strict=True):
        rows = part.flatten(0, 1)  # (B * H, QUERIES, head_dim)
        scores = torch.stack([torch.bmm(rows, block) for block in keys]).unflatten(1, part.shape[:2])
        scores = scores.masked_fill(out_of_sight, float("-inf"))
        weights.append((scores - scores.amax((0, 4), keepdim=True)).exp())
    return weights


def _key_blocks(x: Tensor) -> list[Tensor]:
    """(B, H, keys, head_dim) in blocks of (B * H, KEYS, head_dim), without a copy where that can be."""
    if missing := -x.shape[2] % KEYS:
        x = F.pad(x, (0, 0, 0, missing))
    return [_wide(block).flatten(0, 1) for block in x.split(KEYS, dim=2)]


def _fold(x: Tensor) -> Tensor:
    """Sum over the first dimension, neighbours first: blocks of zeros behind change nothing."""
    while len(x) > 1:
        even = len(x) // 2 * 2
        pairs = x[0:even:2] + x[1:even:2]
        x = pairs if even == len(x) else torch.cat([pairs, x[even:]])
    return x[0]


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32, if it is of a shorter type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
