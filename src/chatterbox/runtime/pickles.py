"""What `torch.save` wrote, read as plain data.

Owns: that nothing in a file is executed, and that no tensor takes memory that the file's size does not warrant. Does
not know: what the data is.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor


def load_plain(file: str | os.PathLike[str] | IO[bytes], map_location: str | torch.device = "cpu") -> Any:
    """The data of a file.

    Raises:
        ValueError: it is compressed, or a tensor has a shape that its bytes do not fill.
        Exception: it is broken, or no plain data; each part of torch has its own.
    """
    _check_container(file)
    found = torch.load(file, map_location=map_location, weights_only=True)
    may_be_meta = torch.device(map_location).type == "meta"
    for tensor in _tensors(found):
        if tensor.is_meta > may_be_meta or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has fewer bytes than that")
    return found


def _check_container(file: str | os.PathLike[str] | IO[bytes]) -> None:
    start = None if isinstance(file, (str, os.PathLike)) else file.tell()
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
                    raise ValueError("it is compressed; torch.save writes it plain")
    finally:
        if start is not None and not isinstance(file, (str, os.PathLike)):
            file.seek(start)


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _tensors(value)
