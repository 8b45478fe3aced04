"""Codec `int4`: four bits a value, asymmetric, keys per channel, values per token, in groups (Liu et al. 2024, KIVI).

Levels between the smallest and the largest number of a group err less than levels around zero:
`benchmarks/results/codecs.json`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.compression import Codec
from chatterbox.kvcache.compression.quantize import pack_keys, pack_values, unpack_keys, unpack_values

BITS, GROUP = 4, 32  # GROUP: positions of a channel of keys that share their ends
WORK = torch.float64  # holds the distance of any two float32 numbers


class Int4Codec(Codec):
    """Bounded: no number is off by more than 1/30 of the distance of the two ends of its group, and its own rounding.

    A group has at most 32 numbers. Any number of positions: the last group of the keys may be short.
    """

    is_exact = False

    def _pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        num_positions = keys.shape[2]
        filling = keys[:, :, -1:].expand(-1, -1, -num_positions % GROUP, -1)  # repeats move no end
        packed = pack_keys(torch.cat([keys, filling], dim=2).to(WORK), BITS, GROUP) | pack_values(values.to(WORK), BITS)
        packed["keys"] = packed["keys"][:, :, :num_positions].clone()
        return {name: part if part.dtype == torch.uint8 else part.to(keys.dtype) for name, part in packed.items()}

    def _unpack(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        num_positions = tensors["keys"].shape[2]
        whole = {name: part if part.dtype == torch.uint8 else part.to(WORK) for name, part in tensors.items()}
        whole["keys"] = F.pad(whole["keys"], (0, 0, 0, -num_positions % GROUP))
        keys = unpack_keys(whole, BITS, GROUP)[:, :, :num_positions]
        return keys, unpack_values(whole, BITS, keys.shape[3])
