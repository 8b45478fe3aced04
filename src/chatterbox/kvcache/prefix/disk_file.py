"""One prefix in one safetensors file: written with a checksum, read without trust.

Owns: the form of a file, what is checked of it. Does not know: folders, budgets, which file is of whom. Nothing is read
that is no plain file, or larger than it may be: a pipe would be waited for. The content is read, not mapped, so that a
file that another process cuts off cannot end this one.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix.keys import content_hash

FORMAT = "chatterbox-prefix-1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_HEADER = 2**24  # bytes; the key in it names every text token


class MisfitError(ValueError):
    """A whole file that this model cannot use."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    about: dict[str, str]
    num_positions: int


def packed(key: str, segment: Segment) -> bytes:
    """The content of a file."""
    from safetensors.torch import save

    keys, values = segment.keys.cpu().contiguous(), segment.values.cpu().contiguous()
    about = {"format": FORMAT, "key": key, "start": str(segment.start), "checksum": content_hash(keys, values)}
    return save({"keys": keys, "values": values}, metadata=about)


def read_header(path: Path) -> Header:
    """Raises OSError where it cannot be read, ValueError where it is another file."""
    with open(_opened(path), "rb") as file:
        return _header(file.read(8), file.read)


def read(path: Path, key: str, max_nbytes: int) -> Segment:
    """The segment that ``path`` holds under ``key``, on the CPU, whole and finite.

    Raises:
        OSError: it cannot be read.
        MisfitError: it has more than ``max_nbytes``.
        ValueError: it is broken or of another key.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    with open(_opened(path), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > max_nbytes + MAX_HEADER:
            raise MisfitError(f"it has {size} bytes")
        about = _header(file.read(8), file.read).about
        if about.get("key") != key:
            raise ValueError("it is another file")
        file.seek(0)
        content = file.read()
    try:
        tensors = load(content)
        keys, values, start = tensors["keys"], tensors["values"], int(about["start"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    if about.get("checksum") != content_hash(keys, values):
        raise ValueError("its checksum does not match")
    if keys.ndim != 4 or keys.shape != values.shape or keys.dtype not in DTYPES or keys.dtype != values.dtype:
        raise ValueError(f"it holds {_shown(keys)} and {_shown(values)}")
    segment = Segment(keys, values, start)
    if not segment.is_finite:
        raise ValueError("it holds NaN or infinite values")
    return segment


def _opened(path: Path) -> int:
    """A descriptor of a plain file, never waited for."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(None, "it is no file")
    return fd


def _header(first: bytes, read: Any) -> Header:
    size = int.from_bytes(first, "little")
    if len(first) != 8 or size > MAX_HEADER:
        raise ValueError("it is no safetensors file")
    try:
        header = json.loads(read(size))
        about, shape = header.get("__metadata__") or {}, header["keys"]["shape"]
        num_positions = int(shape[2])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("its header cannot be read") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("key"), str):
        raise ValueError("it is another file")
    return Header(about, num_positions)


def _shown(tensor: Any) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
