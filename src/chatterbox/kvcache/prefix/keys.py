"""Names by content: what a segment's values depend on, as a short hash.

Owns: hashes of tensors and of a module's weights. Does not know: trees, tiers, what a voice is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

NUM_SAMPLES = 512  # of each weight


def content_hash(*parts: Tensor | bytes | str | None) -> str:
    """Hex digest of the parts' values, shapes, dtypes and order. Tensors may be on any device."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)} {part.dtype};".encode())
            digest.update(part.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, bytes):
            digest.update(f"{len(part)} bytes;".encode())
            digest.update(part)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


@torch.no_grad()
def weights_fingerprint(module: nn.Module) -> str:
    """Hex digest that tells checkpoints apart: names, shapes, dtypes, evenly spread values and the sum of every weight.

    The same on every machine for the same file; reads the weights once.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in _tensors_of(_entries_of(module)):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // NUM_SAMPLES)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {_bit_sum(flat)};".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _entries_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Of the state dict, a module's at a time: of packed layers it is computed, and all of them may not fit."""
    for prefix, one in sorted(module.named_modules()):
        own: dict[str, Any] = {}
        one._save_to_state_dict(own, f"{prefix}." if prefix else "", keep_vars=False)
        yield from sorted(own.items())


def _tensors_of(entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Entries of a state dict by name; quantised layers have tuples of weight and bias there, and other values."""
    for name, value in entries:
        if isinstance(value, (tuple, list)):
            yield from _tensors_of((f"{name}.{index}", part) for index, part in enumerate(value))
        elif isinstance(value, Tensor):
            yield name, value.dequantize() if value.is_quantized else value


def _bit_sum(flat: Tensor) -> int:
    """Sum of the bit patterns, eight bytes at a time: exact, so it does not depend on the order of the sum."""
    flat = flat.contiguous()
    per_word = 8 // flat.element_size()
    if flat.storage_offset() % per_word:
        flat = flat.clone()
    num_whole = len(flat) // per_word * per_word
    # A plain sum of int64 runs at the memory's speed; one that widens what it adds is twenty times slower.
    rest = flat[num_whole:].view(torch.uint8).sum(dtype=torch.int64)
    return int(flat[:num_whole].view(torch.int64).sum() + rest)
