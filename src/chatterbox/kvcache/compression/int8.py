"""Codec `int8`: eight bits a value, symmetric, keys per channel and values per token (Liu et al. 2024, KIVI).

Keys have channels of very different size that hardly change over positions, so each channel of a head gets one scale
for the segment; values have none such, so each position of a head gets one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.kvcache.compression import Codec

LEVELS = 127
KEY_SCALE_DIM, VALUE_SCALE_DIM = 2, 3  # what one scale spans: positions, channels


class Int8Codec(Codec):
    """Bounded: no value is off by more than 1/254 of the largest magnitude that shares its scale."""

    is_exact = False

    def _pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        key_levels, key_scales = _quantize(keys, KEY_SCALE_DIM)
        value_levels, value_scales = _quantize(values, VALUE_SCALE_DIM)
        return {"keys": key_levels, "key_scales": key_scales, "values": value_levels, "value_scales": value_scales}

    def _unpack(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return _restore(tensors["keys"], tensors["key_scales"]), _restore(tensors["values"], tensors["value_scales"])


def _quantize(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Levels -127..127 as int8 and their float32 scales."""
    x = x.float()
    scales = (x.abs().amax(dim, keepdim=True) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scales).round().clamp(-LEVELS, LEVELS).to(torch.int8), scales


def _restore(levels: Tensor, scales: Tensor) -> Tensor:
    largest = torch.finfo(scales.dtype).max  # that its scale's rounding would carry beyond
    return (levels * scales).clamp(-largest, largest)
