"""Codec `none`: as it is, in host memory."""

from __future__ import annotations

from torch import Tensor

from chatterbox.kvcache.compression.codec import Codec


class PlainCodec(Codec):
    """Exact."""

    is_exact = True

    def _pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        return {"keys": keys.clone(), "values": values.clone()}

    def _unpack(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["keys"].clone(), tensors["values"].clone()
