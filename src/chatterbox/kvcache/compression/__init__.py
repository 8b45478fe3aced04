"""Codecs of cold segments: a segment in, tensors in host memory out, and back; each with its error. One file per codec.

Owns: the contract `Codec`, names, and codec `none`, which packs nothing. Must not import: `models`, `engine`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from chatterbox.kvcache.base import Segment

CODECS = {"int4": f"{__name__}.int4.Int4Codec", "int8": f"{__name__}.int8.Int8Codec", "none": f"{__name__}.PlainCodec"}


@cache
def codec(name: str) -> Codec:
    """The codec called ``name``. Raises ValueError if there is none."""
    if name not in CODECS:
        raise ValueError(f"codec {name!r} does not exist; choose from {', '.join(sorted(CODECS))}")
    module, _, kind = CODECS[name].rpartition(".")
    made: Codec = getattr(import_module(module), kind)()
    return made


@dataclass(frozen=True)
class Packed:
    """A segment as a codec keeps it, in host memory."""

    tensors: dict[str, Tensor]
    start: int
    num_positions: int
    dtype: torch.dtype  # of the segment
    device: torch.device  # of the segment
    unpacked_nbytes: int

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Codec(abc.ABC):
    """Stateless, safe from several threads."""

    @property
    @abc.abstractmethod
    def is_exact(self) -> bool:
        """Whether what comes back is what went in, bit by bit."""

    def pack(self, segment: Segment) -> Packed:
        """A copy in host memory."""
        tensors = self._pack(segment.keys.cpu(), segment.values.cpu())
        keys = segment.keys
        return Packed(tensors, segment.start, len(segment), keys.dtype, keys.device, segment.nbytes)

    def unpack(self, packed: Packed) -> Segment:
        """The segment, on the device it came from."""
        keys, values = self._unpack(packed.tensors)
        return Segment(keys.to(packed.device, packed.dtype), values.to(packed.device, packed.dtype), packed.start)

    @abc.abstractmethod
    def _pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Keys and values (layers, heads, positions, head_dim) on the CPU to tensors that share no memory with them."""

    @abc.abstractmethod
    def _unpack(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]: ...


class PlainCodec(Codec):
    """Exact."""

    is_exact = True

    def _pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        return {"keys": keys.clone(), "values": values.clone()}

    def _unpack(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["keys"].clone(), tensors["values"].clone()
