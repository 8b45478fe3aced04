"""Codecs of cold segments: smaller in memory, each with its error. One file per codec, names in `codec`."""

from chatterbox.kvcache.compression.codec import Codec, Packed
from chatterbox.kvcache.compression.int4 import Int4Codec
from chatterbox.kvcache.compression.int8 import Int8Codec
from chatterbox.kvcache.compression.plain import PlainCodec

CODECS: dict[str, Codec] = {"int4": Int4Codec(), "int8": Int8Codec(), "none": PlainCodec()}


def codec(name: str) -> Codec:
    """The codec called ``name``. Raises ValueError if there is none."""
    if name not in CODECS:
        raise ValueError(f"codec {name!r} does not exist; choose from {', '.join(sorted(CODECS))}")
    return CODECS[name]


__all__ = ["CODECS", "Codec", "Int4Codec", "Int8Codec", "Packed", "PlainCodec", "codec"]
