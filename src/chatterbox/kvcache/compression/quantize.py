"""Keys and values as a few levels between the smallest and the largest number of a group (Liu et al. 2024, KIVI).

Owns: levels, the two ends that they are spread between, what makes a group, two four-bit levels in a byte. Does not
know: segments, caches.

Keys have channels of very different size that hardly change over positions: each channel of a head has ends of its
own, for a group of positions. Values have none such: each position has its own, for a group of channels. The ends are
numbers of the group, so a narrow dtype stores them without error and the bound holds in every dtype: a number comes
back within half a step, (largest - smallest) / (2 * (2 ** bits - 1)), and the rounding of its own dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Packed = dict[str, Tensor]


def pack_keys(keys: Tensor, bits: int, group: int) -> Packed:
    """(..., positions, head_dim), ``group`` positions sharing ends; positions must be a multiple of it."""
    levels, low, high = _to_levels(keys.unflatten(-2, (-1, group)), -2, bits)
    levels, low, high = levels.flatten(-3, -2), low.squeeze(-2), high.squeeze(-2)
    return {"keys": _pack_bits(levels, bits), "key_low": low, "key_high": high}


def pack_values(values: Tensor, bits: int) -> Packed:
    """(..., positions, head_dim), `channel_group` channels of a position sharing ends."""
    levels, low, high = _to_levels(values.unflatten(-1, (-1, channel_group(values.shape[-1]))), -1, bits)
    levels, low, high = levels.flatten(-2), low.squeeze(-1), high.squeeze(-1)
    return {"values": _pack_bits(levels, bits), "value_low": low, "value_high": high}


def unpack_keys(packed: Packed, bits: int, group: int) -> Tensor:
    """What `pack_keys` was given, within its bound; computed in the dtype of the ends."""
    low, high = packed["key_low"], packed["key_high"]
    levels = _unpack_bits(packed["keys"], bits, low.shape[-1]).unflatten(-2, (-1, group))
    return _from_levels(levels, low[..., None, :], high[..., None, :], bits).flatten(-3, -2)


def unpack_values(packed: Packed, bits: int, head_dim: int) -> Tensor:
    """What `pack_values` was given, within its bound; computed in the dtype of the ends."""
    low, high = packed["value_low"], packed["value_high"]
    levels = _unpack_bits(packed["values"], bits, head_dim).unflatten(-1, (-1, channel_group(head_dim)))
    return _from_levels(levels, low[..., None], high[..., None], bits).flatten(-2)


def channel_group(head_dim: int, largest: int = 32) -> int:
    """Channels of a value that share ends: as many as divide ``head_dim``, at most ``largest``."""
    return next(size for size in range(min(largest, head_dim), 0, -1) if head_dim % size == 0)


def packed_width(head_dim: int, bits: int) -> int:
    """Bytes of one position of one head, without its ends."""
    return head_dim if bits > 4 else -(-head_dim // 2)


def _to_levels(x: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels 0 to 2 ** bits - 1 as uint8, and the ends, size 1 in ``dim``; ``x``'s dtype must hold their distance."""
    low, high = torch.aminmax(x, dim=dim, keepdim=True)
    step = (high - low) / (2**bits - 1)
    levels = ((x - low) / step.where(step > 0, 1.0)).round()
    return levels.clamp_(0, 2**bits - 1).to(torch.uint8), low, high


def _from_levels(levels: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    return torch.addcmul(low, levels.to(low.dtype), (high - low) / (2**bits - 1))


def _pack_bits(levels: Tensor, bits: int) -> Tensor:
    """Levels below 16 two to a byte: (..., n) to (..., ceil(n / 2)). Larger ones as they are.

    The first half of the dimension is in the low bits and the second in the high ones, so that they come apart whole.
    """
    if bits > 4:
        return levels
    first, second = F.pad(levels, (0, levels.shape[-1] % 2)).chunk(2, dim=-1)
    return first | (second << 4)


def _unpack_bits(packed: Tensor, bits: int, size: int) -> Tensor:
    return packed if bits > 4 else torch.cat([packed & 15, packed >> 4], dim=-1)[..., :size]
