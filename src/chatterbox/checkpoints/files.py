"""Tensors of a checkpoint's files, read one at a time: safetensors, and pickled state dicts without running them.

Owns: the two forms, and what is said of a broken file. Does not know: which tensors a model has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from chatterbox.checkpoints.layouts import CheckpointError


@contextmanager
def open_tensors(path: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]]:
    """Shapes by key, and a function that reads one tensor to the CPU."""
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".pt":
        tensors = _unpickled(path)
        yield {key: tuple(tensor.shape) for key, tensor in tensors.items()}, tensors.__getitem__
        return
    try:
        with safe_open(str(path), "pt") as file:
            yield {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.get_tensor  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = "it is a pickle" if _looks_pickled(path) else str(error)
        raise CheckpointError(f"{path} is not a whole safetensors file ({reason}); copy or download it again") from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A state dict, mapped from its file; nothing in it is executed."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the file's own damage decides which
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a whole file of weights ({reason}); copy or download it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds no state dict; copy or download it again")
    return tensors


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
